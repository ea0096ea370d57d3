// The nodes of a routed FFN over some of its pairs, and the memory they are computed in.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "handles.h"
#include "routed_ffn.h"

namespace hotcache {

// One routed (token, expert) pair of a batch: row `k` of token `token`, computed by slice `slice` of a chain's weights:
// the expert's own number in the cold chain, its slot in the hot one.
struct Pair {
    int token;
    int k;
    int32_t slice;
};

// For an expert tensor of the FFN, the tensor whose slices a chain indexes.
using WeightOf = std::function<ggml_tensor *(const ggml_tensor *)>;

// Device memory that all chains of one backend share: they run one after the other.
class Scratch {
  public:
    explicit Scratch(ggml_backend_buffer_type_t buft) : buft_(buft) {}

    // Gives every tensor its place. False when the memory cannot be had. Growing waits for `user`, the backend that may
    // still compute in the old memory, and invalidates every chain placed there.
    bool place(const std::vector<ggml_tensor *> & tensors, ggml_backend_t user);
    int64_t generation() const { return generation_; }

  private:
    ggml_backend_buffer_type_t buft_;
    BufferPtr buffer_;
    int64_t generation_ = 0;
};

// What a chain computes, to recognise the same computation in a later graph.
class Recipe {
  public:
    Recipe() = default;
    Recipe(const ggml_cgraph & graph, const RoutedFfn & ffn);
    bool same(const ggml_cgraph & graph, const RoutedFfn & ffn) const;

  private:
    struct Step {
        ggml_op op;
        std::array<char, GGML_MAX_OP_PARAMS> op_params;
        const ggml_tensor * weight;  // expert tensor it reads, if any
    };
    static Step step_of(const ggml_tensor * node, const RoutedFfn & ffn);

    std::vector<Step> steps_;
};

struct PairGraph {
    ggml_tensor * x = nullptr;    // F32 [n_in, 1 or pairs_in_token, tokens]
    ggml_tensor * ids = nullptr;  // I32 [pairs_in_token, tokens]: slices
    ggml_tensor * out = nullptr;  // F32 [n_out, pairs_in_token, tokens]
    std::vector<ggml_tensor *> computed;  // every node with memory of its own, `out` last
};

// Adds to `ctx` the same operations and parameters as the FFN's, over the pairs that `x` and `ids` hold and this tier's
// weights. False when `checked`, if given, cannot compute one of them.
bool add_pair_nodes(ggml_context * ctx, const ggml_cgraph & graph, const RoutedFfn & ffn, const WeightOf & weight_of,
                    ggml_backend_t checked, PairGraph & pairs);

// Whether writing to one writes to the other.
inline bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const auto * a_at = static_cast<const char *>(a->data);
    const auto * b_at = static_cast<const char *>(b->data);
    return a_at < b_at + ggml_nbytes(b) && b_at < a_at + ggml_nbytes(a);
}

// `here`, a tensor of a chain, gets the memory of `there`, one of the split.
void stand_for(ggml_tensor * here, const ggml_tensor * there);

// Fixes the data pointers of views among the context's tensors, once what they look into has its memory.
bool init_views(ggml_context * ctx);

}  // namespace hotcache
