// A routed FFN for some of its pairs, as a graph of its own on one backend. Built once, run many times.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
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

// Memory that all chains of one backend share, on its device and on the host: they run one after the other.
class Scratch {
  public:
    explicit Scratch(ggml_backend_buffer_type_t buft) : buft_(buft) {}

    ggml_backend_buffer_type_t buft() const { return buft_; }
    // Buffer of at least `size_bytes`, or null. A buffer that had to grow invalidates every chain built on the old one.
    ggml_backend_buffer_t reserve(size_t size_bytes);
    int64_t generation() const { return generation_; }

    std::vector<float> x_rows;
    std::vector<int32_t> slices;
    std::vector<float> out_rows;

  private:
    ggml_backend_buffer_type_t buft_;
    BufferPtr buffer_;
    int64_t generation_ = 0;
};

class Chain {
  public:
    // `weight_of` gives, for an expert tensor of the FFN, the tensor whose slices this chain indexes.
    // Returns null when the scratch memory cannot be had or `checked`, if given, cannot compute one of the nodes.
    // `scratch` outlives the chain.
    static std::unique_ptr<Chain> build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                        const std::function<ggml_tensor *(const ggml_tensor *)> & weight_of,
                                        ggml_backend_t checked, Scratch & scratch);

    // Uploads the pairs' rows of x and their slice numbers and starts the graph; asynchronous where `backend` is.
    // Everything is read from `ffn` before this returns.
    ggml_status start(ggml_backend_t backend, const RoutedFfn & ffn, const std::vector<Pair> & pairs);
    // Fetches the result to the host; asynchronous where `backend` is.
    void fetch(ggml_backend_t backend);
    // Writes the fetched rows to their places in `ffn.out`.
    void scatter(const RoutedFfn & ffn, const std::vector<Pair> & pairs) const;

    // True when this chain computes exactly what these nodes compute, and its memory is still there.
    bool fits(const ggml_cgraph & graph, const RoutedFfn & ffn) const;

  private:
    Chain() = default;

    struct Step {
        ggml_op op;
        std::array<char, GGML_MAX_OP_PARAMS> op_params;
        const ggml_tensor * weight;  // expert tensor it reads, if any
    };
    static Step step_of(const ggml_tensor * node, const RoutedFfn & ffn);

    std::vector<Step> steps_;
    bool one_token_ = false;  // the pairs are one token's experts: x [n_in, 1 or n, 1], else each pair is a token
    ContextPtr context_;
    ggml_cgraph * graph_ = nullptr;
    ggml_tensor * x_ = nullptr;
    ggml_tensor * ids_ = nullptr;
    ggml_tensor * out_ = nullptr;
    Scratch * scratch_ = nullptr;
    int64_t scratch_generation_ = 0;
};

}  // namespace hotcache
