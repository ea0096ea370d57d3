// A routed FFN for all pairs of one token, started on the fast device before the host knows which experts they are.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pair_graph.h"

namespace hotcache {

// The device looks the slots up itself, in a table of its own. Where the host then finds that a pair has missed, what
// was computed for it is overwritten with the cold row; where none has, the device has not waited for anybody.
class AheadChain {
  public:
    // Null when there is no memory for it, or `backend` cannot compute one of the nodes.
    static std::unique_ptr<AheadChain> build(const ggml_cgraph & graph, const RoutedFfn & ffn, const WeightOf & weight_of,
                                             ggml_backend_t backend, Scratch & scratch);

    // Writes all rows of ffn.out, in `backend`'s order. slots: by expert, each of them one that may be read until
    // `backend` has got this far.
    ggml_status start(ggml_backend_t backend, const RoutedFfn & ffn, const std::vector<int32_t> & slots);

    bool fits(const ggml_cgraph & graph, const RoutedFfn & ffn) const {
        return scratch_generation_ == scratch_->generation() && x_rows_ == ffn.x->ne[1] && recipe_.same(graph, ffn);
    }

  private:
    explicit AheadChain(ggml_backend_buffer_type_t buft) : slots_memory_(buft) {}

    Recipe recipe_;
    int64_t x_rows_ = 0;
    ContextPtr context_;
    ggml_cgraph * graph_ = nullptr;
    PairGraph pairs_;
    ggml_tensor * ids_ = nullptr;    // stands for ffn.ids
    ggml_tensor * slots_ = nullptr;  // I32 [1, n_expert], in memory of its own: it stays from step to step
    Scratch slots_memory_;
    std::vector<int32_t> slot_values_;  // what is in it
    Scratch * scratch_ = nullptr;
    int64_t scratch_generation_ = 0;
};

}  // namespace hotcache
