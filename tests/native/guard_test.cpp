// The guard decides from costs that a model of a machine states: it must see through noise, and cost next to nothing.
#include <cmath>
#include <functional>
#include <random>

#include "cache/guard.h"
#include "cache/prompt_choice.h"
#include "require.h"

namespace {

using hotcache::Guard;

constexpr int n_layers = 12;

// Seconds of one layer, with the cache or without.
using Cost = std::function<double(int layer, bool cached)>;

struct Outcome {
    int64_t first_off = -1;      // step from which on the cache was off
    double lost_s = 0.0;         // time beyond what the better way would have taken
    double total_s = 0.0;
};

Outcome run(Guard & guard, int64_t steps, const Cost & cost, double noise, unsigned seed,
            const std::function<int(int64_t)> & tokens = [](int64_t) { return 1; }) {
    std::mt19937 rng(seed);
    std::lognormal_distribution<double> jitter(0.0, noise);
    Outcome outcome;
    for (int64_t step = 0; step < steps; ++step) {
        const Guard::Kind kind = guard.begin_step(tokens(step), true);
        for (int layer = 0; layer < n_layers; ++layer) {
            const bool cached = kind == Guard::Kind::trial || (kind == Guard::Kind::cached && guard.pays(layer));
            const double seconds = cost(layer, cached) * (noise > 0 ? jitter(rng) : 1.0);
            guard.record(layer, seconds);
            outcome.total_s += cost(layer, cached);
            outcome.lost_s += cost(layer, cached) - std::min(cost(layer, true), cost(layer, false));
        }
        if (!guard.pays() && outcome.first_off < 0) { outcome.first_off = step; }
    }
    return outcome;
}

void a_cache_that_wins_stays_on_and_is_hardly_disturbed() {
    for (unsigned seed = 0; seed < 20; ++seed) {
        Guard guard;
        const Outcome outcome = run(guard, 20000, [](int, bool cached) { return cached ? 1.0 : 3.5; }, 0.1, seed);
        REQUIRE(guard.pays() && outcome.first_off < 0);
        REQUIRE(guard.trials() >= 2);
        REQUIRE(outcome.lost_s < 0.005 * outcome.total_s);
    }
}

void a_cache_that_loses_goes_off_soon() {
    for (unsigned seed = 0; seed < 20; ++seed) {
        Guard guard;
        const Outcome outcome = run(guard, 20000, [](int, bool cached) { return cached ? 1.2 : 1.0; }, 0.05, seed);
        REQUIRE(!guard.pays());
        REQUIRE(outcome.first_off >= 0 && outcome.first_off < 100);
        REQUIRE(outcome.lost_s < 0.005 * outcome.total_s);
        REQUIRE(guard.costs().cached_s > guard.costs().plain_s);
    }
}

void a_cache_that_costs_nothing_stays_on() {
    Guard guard;
    run(guard, 5000, [](int, bool) { return 1.0; }, 0.0, 1);
    REQUIRE(guard.pays() && guard.pays(0));
}

void one_layer_can_go_off_alone() {
    Guard guard;
    run(guard, 5000, [](int layer, bool cached) { return layer == 4 ? (cached ? 1.5 : 1.0) : (cached ? 1.0 : 3.0); }, 0.02, 1);
    REQUIRE(guard.pays());
    for (int layer = 0; layer < n_layers; ++layer) { REQUIRE(guard.pays(layer) == (layer != 4)); }
}

void what_did_not_pay_is_tried_again() {
    Guard guard;
    run(guard, 500, [](int, bool cached) { return cached ? 2.0 : 1.0; }, 0.0, 1);
    REQUIRE(!guard.pays());
    guard.retry();
    REQUIRE(guard.pays());
    run(guard, 500, [](int, bool cached) { return cached ? 0.5 : 1.0; }, 0.0, 1);
    REQUIRE(guard.pays());
    guard.retry();
    run(guard, 500, [](int, bool cached) { return cached ? 2.0 : 1.0; }, 0.0, 1);
    REQUIRE(!guard.pays());
}

void slots_still_filling_are_given_time() {
    Guard guard;
    for (int step = 0; step < 200; ++step) {
        const Guard::Kind kind = guard.begin_step(1, false);
        for (int layer = 0; layer < n_layers; ++layer) { guard.record(layer, kind == Guard::Kind::plain ? 1.0 : 1.1); }
    }
    REQUIRE(guard.trials() >= 1 && guard.pays());
}

// Speculative decoding and servers mix batch sizes all the time.
void a_trial_is_about_one_batch_size() {
    for (const bool worse : {false, true}) {
        Guard guard;
        const auto tokens = [](int64_t step) { return step % 3 == 0 ? 5 : 1; };
        run(guard, 5000, [&](int, bool cached) { return cached == worse ? 1.0 : 0.5; }, 0.0, 1, tokens);
        REQUIRE(guard.trials() > 0 && guard.pays() != worse);
    }
}

void a_batch_size_that_never_comes_again_ends_the_trial() {
    Guard guard;
    const auto tokens = [](int64_t step) { return static_cast<int>(step); };
    run(guard, 5000, [](int, bool cached) { return cached ? 1.0 : 0.1; }, 0.0, 1, tokens);
    REQUIRE(guard.trials() == 0 && guard.pays() && guard.plain_steps() < 50);
}

void prompts_go_where_they_are_faster() {
    using hotcache::PromptChoice;
    using hotcache::PromptWay;
    for (const PromptWay better : {PromptWay::stream, PromptWay::cold}) {
        PromptChoice choice;
        int worse = 0;
        for (int layer = 0; layer < 1000; ++layer) {
            const bool timed = choice.undecided(512);
            const PromptWay way = choice.next(512);
            worse += way == better ? 0 : 1;
            // The first of each kind takes memory, too.
            if (timed) { choice.record(512, way, (way == better ? 1.0 : 2.0) + (layer < 2 ? 5.0 : 0.0)); }
        }
        REQUIRE(worse == 3);
        REQUIRE(!choice.undecided(600) && choice.undecided(64));
    }
}

}  // namespace

int main() {
    a_cache_that_wins_stays_on_and_is_hardly_disturbed();
    a_cache_that_loses_goes_off_soon();
    a_cache_that_costs_nothing_stays_on();
    one_layer_can_go_off_alone();
    what_did_not_pay_is_tried_again();
    slots_still_filling_are_given_time();
    a_trial_is_about_one_batch_size();
    a_batch_size_that_never_comes_again_ends_the_trial();
    prompts_go_where_they_are_faster();
    return 0;
}
