#include "trace.h"

#include "random.h"

namespace gpu {

Trace make_trace(int n, int n_vocab, int topics, int stay, uint64_t seed) {
    Random random(seed, "trace");
    const auto number_below = [&](int64_t n) {
        return static_cast<int64_t>(random.below(static_cast<uint64_t>(n)));
    };
    // The inverse of token * topics / n_vocab.
    const auto first_token = [&](int64_t topic) { return (topic * n_vocab + topics - 1) / topics; };
    Trace trace;
    int topic = 0;
    for (int i = 0; i < n; ++i) {
        // Always another topic: a stay that happened to be followed by itself would drift less than it says.
        if (i % stay == 0 && topics > 1) { topic = static_cast<int>((topic + 1 + number_below(topics - 1)) % topics); }
        const int64_t first = first_token(topic);
        trace.tokens.push_back(static_cast<int32_t>(first + number_below(first_token(topic + 1) - first)));
        trace.topic.push_back(topic);
    }
    return trace;
}

}  // namespace gpu
