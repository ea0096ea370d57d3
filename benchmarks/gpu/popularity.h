// How a random model comes to have favourite experts, and other favourites for other topics.
//
// Every token embedding carries one direction common to all tokens and one of its topic. A router row leans along these
// directions by its expert's popularity, so its logit is lean * popularity + noise of standard deviation 1.
#pragma once

#include <vector>

#include "shape.h"

namespace gpu {

// Of one layer; log-popularities have mean zero and fall like Zipf's law.
struct Popularity {
    std::vector<float> common;                 // [experts]
    std::vector<std::vector<float>> topical;   // [topics][experts]
};

Popularity popularity(const Shape & shape, int layer);

// How far logits must lean for the busiest fifth of the experts to take `shape.top_share` of the activations over all
// topics together. Throws std::invalid_argument when no lean gives it.
double lean(const Shape & shape);

}  // namespace gpu
