// A routed FFN for some of its pairs, computed where its input and its output lie: in memory the fast device works in.
#pragma once

#include <memory>
#include <vector>

#include "pair_graph.h"

namespace hotcache {

class DeviceChain {
  public:
    // Pairs come in the order of their tokens and rows. Returns null when the scratch memory cannot be had or `backend` cannot compute one of the nodes.
    static std::unique_ptr<DeviceChain> build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                              const WeightOf & weight_of, ggml_backend_t backend, Scratch & scratch);

    // Uploads which rows and slices the pairs are and starts the graph, `rest` behind it in one go. It reads `x`, the FFN's
    // input or a copy of it, and writes the pairs' rows of ffn.out, all in `backend`'s order. It may start again once
    // `backend` has got this far.
    ggml_status start(ggml_backend_t backend, const RoutedFfn & ffn, const ggml_tensor * x,
                      const std::vector<Pair> & pairs, const ggml_cgraph & rest);

    bool fits(const ggml_cgraph & graph, const RoutedFfn & ffn) const {
        return scratch_generation_ == scratch_->generation() && x_rows_ == ffn.x->ne[1] && recipe_.same(graph, ffn);
    }

  private:
    DeviceChain() = default;

    // True when the pairs are all there are, in their order: nothing to gather or to scatter.
    bool whole() const { return target_ == nullptr; }

    Recipe recipe_;
    int64_t x_rows_ = 0;  // of a token in ffn.x: 1, or one for each pair
    ContextPtr context_;
    ggml_cgraph * graph_ = nullptr;
    PairGraph pairs_;
    ggml_tensor * x_ = nullptr;        // stands for ffn.x
    ggml_tensor * target_ = nullptr;   // stands for ffn.out as rows [n_out, n_used * n_tokens]
    ggml_tensor * written_ = nullptr;  // `target_` after the rows were written
    ggml_tensor * control_ = nullptr;  // I32: slices, rows of x, rows of out
    bool gathers_ = false;
    std::vector<int32_t> control_values_;
    std::vector<ggml_tensor *> nodes_;  // of the graph and what was behind it last
    Scratch * scratch_ = nullptr;
    int64_t scratch_generation_ = 0;
};

}  // namespace hotcache
