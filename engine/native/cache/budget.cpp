#include "budget.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>

namespace hotcache {

namespace {

bool has_counts(const LayerDemand & layer) { return layer.counts.size() == static_cast<size_t>(layer.n_experts); }

double hits_of(double count) { return std::isfinite(count) && count > 0.0 ? count : 0.0; }

// A layer's coverage curve: the recorded hits that each further slot adds, most first.
std::vector<double> gains_of(const LayerDemand & layer, double hits_if_unknown) {
    if (!has_counts(layer)) {
        return std::vector<double>(static_cast<size_t>(layer.n_experts), hits_if_unknown / layer.n_experts);
    }
    std::vector<double> gains;
    for (const double count : layer.counts) { gains.push_back(hits_of(count)); }
    std::sort(gains.begin(), gains.end(), std::greater<>());
    return gains;
}

// One more slot for every layer that has an expert left, as long as all of them get theirs.
void spread_flat(int64_t left_bytes, const std::vector<LayerDemand> & layers, std::vector<size_t> open,
                 std::vector<int> & slots) {
    while (!open.empty()) {
        for (const size_t i : open) {
            if (layers[i].expert_bytes > left_bytes) { return; }
            left_bytes -= layers[i].expert_bytes;
        }
        for (const size_t i : open) { ++slots[i]; }
        const auto full = [&](size_t i) { return slots[i] == layers[i].n_experts; };
        open.erase(std::remove_if(open.begin(), open.end(), full), open.end());
    }
}

// The next slot to whichever layer gains most hits a byte from it, as long as one fits.
void spread_by_coverage(int64_t left_bytes, const std::vector<LayerDemand> & layers, const std::vector<size_t> & open,
                        std::vector<int> & slots) {
    double hits = 0.0;
    int known = 0;
    for (const size_t i : open) {
        if (!has_counts(layers[i])) { continue; }
        for (const double count : layers[i].counts) { hits += hits_of(count); }
        ++known;
    }
    const double hits_if_unknown = known > 0 ? hits / known : 1.0;

    std::vector<std::vector<double>> gains(layers.size());
    for (const size_t i : open) { gains[i] = gains_of(layers[i], hits_if_unknown); }
    const auto gain_a_byte = [&](size_t i) {
        return gains[i][static_cast<size_t>(slots[i])] / static_cast<double>(layers[i].expert_bytes);
    };
    // Equal gains even out.
    const auto after = [&](size_t a, size_t b) {
        const double gain_a = gain_a_byte(a);
        const double gain_b = gain_a_byte(b);
        return gain_a != gain_b ? gain_a < gain_b : slots[a] != slots[b] ? slots[a] > slots[b] : a > b;
    };
    std::priority_queue<size_t, std::vector<size_t>, decltype(after)> next(after, open);
    while (!next.empty()) {
        const size_t i = next.top();
        next.pop();
        if (layers[i].expert_bytes > left_bytes) { continue; }
        left_bytes -= layers[i].expert_bytes;
        if (++slots[i] < layers[i].n_experts) { next.push(i); }
    }
}

}  // namespace

std::vector<int> slots_within(int64_t budget_bytes, const std::vector<LayerDemand> & layers, Spread spread, int n_whole) {
    std::vector<int> slots(layers.size(), 0);
    std::vector<size_t> open;
    int64_t left_bytes = std::max<int64_t>(budget_bytes, 0);
    for (size_t i = layers.size(); i-- > 0;) {
        const LayerDemand & layer = layers[i];
        if (layer.n_experts <= 0 || layer.expert_bytes <= 0) { continue; }
        // Divided, because the product could overflow.
        const bool fits = left_bytes / layer.expert_bytes >= layer.n_experts;
        if (fits && n_whole > 0) {
            slots[i] = layer.n_experts;
            left_bytes -= layer.n_experts * layer.expert_bytes;
            --n_whole;
        } else {
            open.push_back(i);
            n_whole = 0;
        }
    }
    if (spread == Spread::coverage) {
        spread_by_coverage(left_bytes, layers, open, slots);
    } else {
        spread_flat(left_bytes, layers, open, slots);
    }
    return slots;
}

}  // namespace hotcache
