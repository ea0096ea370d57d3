// How slots are spread within a budget, by example and over random models.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cache/budget.h"
#include "require.h"

using namespace hotcache;

namespace {

using Slots = std::vector<int>;

constexpr Spread every_spread[] = {Spread::flat, Spread::coverage};

void a_budget_of_nothing_is_off() {
    const std::vector<LayerDemand> layers(3, {8, 10, {}});
    for (const Spread spread : every_spread) {
        REQUIRE(slots_within(0, layers, spread, 0) == Slots({0, 0, 0}));
        REQUIRE(slots_within(-5, layers, spread, 3) == Slots({0, 0, 0}));
        REQUIRE(slots_within(9, layers, spread, 0) == Slots({0, 0, 0}));
        REQUIRE(slots_within(100, {}, spread, 1).empty());
    }
}

void flat_gives_all_layers_the_same_number() {
    const std::vector<LayerDemand> layers = {{8, 10, {}}, {8, 20, {}}, {8, 10, {}}};
    REQUIRE(slots_within(119, layers, Spread::flat, 0) == Slots({2, 2, 2}));
    REQUIRE(slots_within(120, layers, Spread::flat, 0) == Slots({3, 3, 3}));
    REQUIRE(slots_within(10000, layers, Spread::flat, 0) == Slots({8, 8, 8}));
}

void a_layer_with_all_its_experts_leaves_the_rest_to_others() {
    const std::vector<LayerDemand> layers = {{2, 10, {}}, {8, 10, {}}};
    REQUIRE(slots_within(70, layers, Spread::flat, 0) == Slots({2, 5}));
    REQUIRE(slots_within(70, layers, Spread::coverage, 0) == Slots({2, 5}));
}

void the_last_layers_are_whole_first() {
    const std::vector<LayerDemand> layers = {{4, 10, {}}, {4, 10, {}}, {4, 10, {}}};
    for (const Spread spread : every_spread) {
        REQUIRE(slots_within(60, layers, spread, 1) == Slots({1, 1, 4}));
        REQUIRE(slots_within(100, layers, spread, 2) == Slots({2, 4, 4}));
        REQUIRE(slots_within(1000, layers, spread, 99) == Slots({4, 4, 4}));
        REQUIRE(slots_within(30, layers, spread, 1) == Slots({1, 1, 1}));  // not even one fits whole
    }
}

void coverage_gives_the_slot_where_it_gains_most() {
    const std::vector<LayerDemand> layers = {{4, 10, {1, 90, 2, 7}}, {4, 10, {30, 20, 26, 24}}};
    REQUIRE(slots_within(10, layers, Spread::coverage, 0) == Slots({1, 0}));
    REQUIRE(slots_within(50, layers, Spread::coverage, 0) == Slots({1, 4}));
    REQUIRE(slots_within(60, layers, Spread::coverage, 0) == Slots({2, 4}));
}

void coverage_weighs_what_a_slot_costs() {
    const std::vector<LayerDemand> layers = {{2, 30, {80, 20}}, {2, 10, {60, 40}}};
    REQUIRE(slots_within(20, layers, Spread::coverage, 0) == Slots({0, 2}));
    REQUIRE(slots_within(50, layers, Spread::coverage, 0) == Slots({1, 2}));
    REQUIRE(slots_within(40, layers, Spread::coverage, 0) == Slots({0, 2}));  // 20 left over: nothing costs so little
}

void a_layer_without_counts_is_as_busy_as_the_others_and_flat() {
    const std::vector<LayerDemand> layers = {{4, 10, {70, 30, 0, 0}}, {4, 10, {}}, {4, 10, {1, 2}}};
    REQUIRE(slots_within(20, layers, Spread::coverage, 0) == Slots({2, 0, 0}));
    REQUIRE(slots_within(60, layers, Spread::coverage, 0) == Slots({2, 2, 2}));
    REQUIRE(slots_within(110, layers, Spread::coverage, 0) == Slots({3, 4, 4}));
}

void nonsense_gets_no_slots() {
    const double nan = std::nan("");
    const std::vector<LayerDemand> layers = {{-1, 10, {}}, {4, 0, {}}, {4, -7, {}}, {0, 1, {}},
                                             {2, std::numeric_limits<int64_t>::max(), {}}, {3, 10, {nan, -4, 5}}};
    for (const Spread spread : every_spread) {
        const Slots slots = slots_within(std::numeric_limits<int64_t>::max() - 1, layers, spread, 0);
        REQUIRE(slots[0] == 0 && slots[1] == 0 && slots[2] == 0 && slots[3] == 0 && slots[4] == 0);
    }
    REQUIRE(slots_within(30, layers, Spread::coverage, 0)[5] == 3);
}

int64_t bytes_of(const std::vector<LayerDemand> & layers, const Slots & slots) {
    int64_t bytes = 0;
    for (size_t i = 0; i < layers.size(); ++i) { bytes += slots[i] * layers[i].expert_bytes; }
    return bytes;
}

// Recorded hits of the hottest experts in so many slots.
double hits_of(const std::vector<LayerDemand> & layers, const Slots & slots) {
    double hits = 0.0;
    for (size_t i = 0; i < layers.size(); ++i) {
        std::vector<double> counts = layers[i].counts;
        std::sort(counts.rbegin(), counts.rend());
        hits = std::accumulate(counts.begin(), counts.begin() + slots[i], hits);
    }
    return hits;
}

void random_models(unsigned seed) {
    std::mt19937 rng(seed);
    const auto pick = [&rng](int below) { return static_cast<int>(rng() % static_cast<unsigned>(below)); };
    std::vector<LayerDemand> layers(static_cast<size_t>(1 + pick(12)));
    const bool one_size = pick(2) == 0;
    const bool all_known = pick(2) == 0;
    for (LayerDemand & layer : layers) {
        layer.n_experts = 1 + pick(20);
        layer.expert_bytes = one_size ? 7 : 1 + pick(1000);
        if (!all_known && pick(3) == 0) { continue; }
        for (int e = 0; e < layer.n_experts; ++e) { layer.counts.push_back(pick(100) * pick(100)); }
    }
    int64_t everything = 0;
    int64_t largest = 0;
    for (const LayerDemand & layer : layers) {
        everything += layer.n_experts * layer.expert_bytes;
        largest = std::max(largest, layer.expert_bytes);
    }
    const int64_t budget = pick(static_cast<int>(everything) + 50);
    const int n_whole = pick(3) == 0 ? pick(static_cast<int>(layers.size()) + 1) : 0;

    for (const Spread spread : every_spread) {
        const Slots slots = slots_within(budget, layers, spread, n_whole);
        REQUIRE(bytes_of(layers, slots) <= budget);
        for (size_t i = 0; i < layers.size(); ++i) { REQUIRE(slots[i] >= 0 && slots[i] <= layers[i].n_experts); }
        if (budget >= everything) { REQUIRE(bytes_of(layers, slots) == everything); }
        // As many whole layers as fit, from the last one on.
        int64_t whole_bytes = 0;
        for (int i = 0; i < n_whole; ++i) {
            const size_t at = layers.size() - 1 - static_cast<size_t>(i);
            whole_bytes += layers[at].n_experts * layers[at].expert_bytes;
            if (whole_bytes <= budget) { REQUIRE(slots[at] == layers[at].n_experts); }
        }
    }
    const Slots covering = slots_within(budget, layers, Spread::coverage, n_whole);
    // Nothing that would still fit is left out.
    for (size_t i = 0; i < layers.size(); ++i) {
        REQUIRE(covering[i] == layers[i].n_experts || bytes_of(layers, covering) + layers[i].expert_bytes > budget);
    }
    // With one size of expert the greedy choice is the best there is, so at least as good as the flat one.
    if (one_size && all_known) {
        REQUIRE(hits_of(layers, covering) >= hits_of(layers, slots_within(budget, layers, Spread::flat, n_whole)));
    }
}

// Greedy against every spread there is, for small models of one expert size.
void coverage_is_the_best_spread(unsigned seed) {
    std::mt19937 rng(seed);
    std::vector<LayerDemand> layers(3, {4, 5, {}});
    for (LayerDemand & layer : layers) {
        for (int e = 0; e < 4; ++e) { layer.counts.push_back(rng() % 50); }
    }
    const int total = static_cast<int>(rng() % 13);
    double best = 0.0;
    for (int a = 0; a <= 4; ++a) {
        for (int b = 0; b <= 4; ++b) {
            const int c = total - a - b;
            if (c >= 0 && c <= 4) { best = std::max(best, hits_of(layers, {a, b, c})); }
        }
    }
    REQUIRE(hits_of(layers, slots_within(5 * total + 4, layers, Spread::coverage, 0)) == best);
}

}  // namespace

int main() {
    a_budget_of_nothing_is_off();
    flat_gives_all_layers_the_same_number();
    a_layer_with_all_its_experts_leaves_the_rest_to_others();
    the_last_layers_are_whole_first();
    coverage_gives_the_slot_where_it_gains_most();
    coverage_weighs_what_a_slot_costs();
    a_layer_without_counts_is_as_busy_as_the_others_and_flat();
    nonsense_gets_no_slots();
    for (unsigned seed = 0; seed < 20000; ++seed) { random_models(seed); }
    for (unsigned seed = 0; seed < 2000; ++seed) { coverage_is_the_best_spread(seed); }
    return 0;
}
