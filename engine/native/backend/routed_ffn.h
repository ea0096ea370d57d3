// Recognises one routed FFN in what the scheduler hands over.
//
// A routed FFN is the run of nodes from the first product with expert weights to the last node that is still computed
// for each (token, expert) pair on its own: products, biases by expert, activations. Each of them can be computed for
// any subset of the pairs. What follows (weighting, sum over experts) needs all pairs and is the graph's tail.
#pragma once

#include <optional>
#include <vector>

#include "ggml_abi.h"

namespace hotcache {

struct RoutedFfn {
    int first = 0;  // nodes [first, last] are per pair; node `last` is the only one read outside
    int last = 0;
    const ggml_tensor * x = nullptr;    // F32 [n_in, 1 or n_used, n_tokens]
    const ggml_tensor * ids = nullptr;  // I32 [n_used, n_tokens], rows may be strided
    ggml_tensor * out = nullptr;        // F32 [n_out, n_used, n_tokens]
    std::vector<const ggml_tensor *> weights;  // expert tensors, each once: [n_in, n_out, n_expert] or bias [n_out, n_expert]

    int n_used() const { return static_cast<int>(ids->ne[0]); }
    int n_tokens() const { return static_cast<int>(ids->ne[1]); }
    int n_expert() const { return static_cast<int>(weights.front()->ne[2]); }
    // Stands for the layer: the first expert tensor.
    const ggml_tensor * key() const { return weights.front(); }
};

// Bytes of one expert's slice of an expert tensor, which is also the distance to the next expert's.
inline size_t expert_slice_bytes(const ggml_tensor * weight) {
    return weight->ne[2] > 1 ? weight->nb[2] : weight->nb[1];
}

// The operations that may stand between two expert products and work on each pair's row alone.
bool is_pair_op(const ggml_tensor * node);

// Nothing unless every condition for splitting the pairs holds for certain.
std::optional<RoutedFfn> recognise(const ggml_cgraph & graph, ggml_backend_buffer_type_t expert_buft);

}  // namespace hotcache
