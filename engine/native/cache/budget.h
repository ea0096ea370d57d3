// How many slots each layer gets of a budget in bytes.
#pragma once

#include <cstdint>
#include <vector>

namespace hotcache {

enum class Spread {
    flat,      // the same number of slots for every layer
    coverage,  // each slot to the layer where the recorded routing gains most from it
};

// What one layer's slots cost, and what they would serve.
struct LayerDemand {
    int n_experts = 0;
    int64_t expert_bytes = 0;    // of one slot; differs between layers of mixed quantisation
    std::vector<double> counts;  // recorded routing, one an expert; any other number of them: unknown
};

// Slots for each of `layers`, which take no more than `budget_bytes` together and are no more than the layer's experts.
// The last `n_whole` layers come first, from the last one on, each with all its experts, until one of them does not fit;
// the rest of the budget is spread over the rest of the layers. Layers whose routing is unknown are spread over as if it
// were flat, and as busy as the mean of the known ones.
std::vector<int> slots_within(int64_t budget_bytes, const std::vector<LayerDemand> & layers, Spread spread, int n_whole);

}  // namespace hotcache
