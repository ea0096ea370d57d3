// One routed FFN's share of the fast tier: its slots, who holds them, and what happened.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache/slot_table.h"
#include "handles.h"
#include "routed_ffn.h"

namespace hotcache {

struct LayerCounters {
    int64_t hits = 0;
    int64_t misses = 0;
    int64_t promotions = 0;
    int64_t evictions = 0;
    int64_t bytes_moved = 0;
    int64_t steps = 0;   // FFN evaluations that asked the cache
    double hot_s = 0.0;  // from starting the hot chain to the join with the cold one
    double cold_s = 0.0; // in the cold chain
    double wait_s = 0.0; // waiting for the hot chain with nothing else to do
};

class Layer {
  public:
    // Takes up to `n_slots` slots on `fast_buft`, fewer when memory is short.
    Layer(const RoutedFfn & ffn, int n_slots, ggml_backend_buffer_type_t fast_buft);

    const ggml_tensor * key() const { return weights_.front(); }
    const std::vector<const ggml_tensor *> & weights() const { return weights_; }
    int n_slots() const { return n_slots_; }
    int index() const { return index_; }
    int64_t expert_bytes() const { return expert_bytes_; }
    // Where the slots of an expert tensor lie: same shape, n_slots slices.
    ggml_tensor * slots_of(const ggml_tensor * weight) const;

    // Copies one expert into its slot; returns the bytes copied. Called by the promoter only.
    int64_t copy(const Promotion & promotion);

    // Frees the slots' memory. Nobody may use the layer any more.
    void release();

    std::mutex mutex;  // guards table and counters
    SlotTable table;
    LayerCounters counters;

  private:
    bool allocate(int n_slots, ggml_backend_buffer_type_t fast_buft);

    std::vector<const ggml_tensor *> weights_;
    std::vector<ggml_tensor *> slots_;  // parallel to weights_
    int n_slots_ = 0;
    int index_ = 0;
    int64_t expert_bytes_ = 0;
    ContextPtr context_;
    BufferPtr buffer_;
};

}  // namespace hotcache
