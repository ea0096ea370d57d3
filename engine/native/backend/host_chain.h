// A routed FFN for some of its pairs on one backend, fed from and read back to host memory. Built once, run many times.
#pragma once

#include <memory>
#include <vector>

#include "pair_graph.h"

namespace hotcache {

// Host memory that all host chains of one backend share.
struct HostRows {
    std::vector<float> x;
    std::vector<int32_t> slices;
    std::vector<float> out;  // [n_pairs][n_out] of the chain that ran last
};

class HostChain {
  public:
    // Returns null when the scratch memory cannot be had or `backend` cannot compute one of the nodes; a backend that
    // computes everything the scheduler gave it need not be `checked`. `scratch` and `rows` outlive the chain.
    static std::unique_ptr<HostChain> build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                            const WeightOf & weight_of, ggml_backend_t backend, bool checked,
                                            Scratch & scratch, HostRows & rows);

    // Uploads the pairs' rows of `x` and their slice numbers and starts the graph; asynchronous where `backend` is.
    // `x` is the FFN's input in host memory, laid out as ffn.x. Everything is read from it before this returns.
    ggml_status start(ggml_backend_t backend, const RoutedFfn & ffn, const char * x, const std::vector<Pair> & pairs);
    // Fetches the result to the shared rows; asynchronous where `backend` is.
    void fetch(ggml_backend_t backend);
    // Writes the fetched rows to their places in `out`, host memory laid out as ffn.out.
    void scatter(const RoutedFfn & ffn, char * out, const std::vector<Pair> & pairs) const;

    // True when this chain computes exactly what these nodes compute, and its memory is still there.
    bool fits(const ggml_cgraph & graph, const RoutedFfn & ffn) const {
        return scratch_generation_ == scratch_->generation() && recipe_.same(graph, ffn);
    }

  private:
    HostChain() = default;

    Recipe recipe_;
    bool one_token_ = false;  // the pairs are one token's experts: x [n_in, 1 or n, 1], else each pair is a token
    ContextPtr context_;
    ggml_cgraph * graph_ = nullptr;
    PairGraph pairs_;
    Scratch * scratch_ = nullptr;
    HostRows * rows_ = nullptr;
    int64_t scratch_generation_ = 0;
};

}  // namespace hotcache
