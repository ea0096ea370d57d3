// One routed FFN's share of the fast tier: its slots, who holds them, and what happened.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cache/slot_table.h"
#include "handles.h"
#include "pair_graph.h"
#include "routed_ffn.h"

namespace hotcache {

struct LayerCounters {
    int64_t hits = 0;
    int64_t misses = 0;
    int64_t promotions = 0;
    int64_t evictions = 0;
    int64_t bytes_moved = 0;
    int64_t steps = 0;         // FFN evaluations that asked the cache
    int64_t device_steps = 0;  // of these, on the device path
    int64_t plain_steps = 0;   // of these, computed without it by the guard's decision
    int64_t ahead_steps = 0;   // of these, started on the fast device before the host knew the experts
    int64_t whole_steps = 0;   // of these, all pairs of which hit
    int64_t prompt_steps = 0;  // batches of prompts computed by this backend
    int64_t streamed_steps = 0;// of these, on the fast device with experts streamed to it
    int64_t streamed_bytes = 0;
    double hot_s = 0.0;        // from starting the hot chain to the join with the cold one
    double cold_s = 0.0;       // in the cold chain
    double wait_s = 0.0;       // waiting for the fast device with nothing else to do
    double stall_s = 0.0;      // waiting for a promotion's lock or copy
};

class Layer {
  public:
    // Takes `n_slots` slots on `fast_buft`, fewer when memory is short.
    Layer(const RoutedFfn & ffn, int n_slots, ggml_backend_buffer_type_t fast_buft);

    const ggml_tensor * key() const { return weights_.front(); }
    const std::vector<const ggml_tensor *> & weights() const { return weights_; }
    int n_slots() const { return n_slots_; }
    int index() const { return index_; }
    int64_t expert_bytes() const { return expert_bytes_; }
    int64_t repacked_bytes() const { return repacked_bytes_; }

    // Where a tier's chain finds an expert tensor: the slots (same shape, n_slots slices), or all experts, in the CPU's
    // packed layout where there is such a copy.
    WeightOf hot_weights() const;
    WeightOf cold_weights() const;

    // Keeps a second copy of the experts in the layout the CPU computes fastest from, where it has one for their type.
    void repack();

    // Copies one expert into its slot, a piece at a time; `give_way` is called between pieces. Promoter's thread only.
    int64_t copy(const Promotion & promotion, size_t piece_bytes, const std::function<void()> & give_way);

    // Frees the slots' memory. Nobody may use the layer any more.
    void release();

    std::mutex mutex;  // guards table, counters and hit_share
    SlotTable table;
    LayerCounters counters;
    double hit_share = 0.0;  // of late
    std::atomic<bool> missed_last{true};  // the last step did not hit with every pair
    bool filling = false;  // empty slots are to be filled with what is known to be hot, without waiting for tokens
    std::atomic<bool> pays{true};  // the guard's last word

  private:
    bool allocate(int n_slots, ggml_backend_buffer_type_t fast_buft);
    size_t position_of(const ggml_tensor * weight) const;

    std::vector<const ggml_tensor *> weights_;
    std::vector<ggml_tensor *> slots_;     // parallel to weights_
    std::vector<ggml_tensor *> repacked_;  // parallel to weights_ or empty; null where there is only the original
    int n_slots_ = 0;
    int index_ = 0;
    int64_t expert_bytes_ = 0;
    int64_t repacked_bytes_ = 0;
    ContextPtr context_;
    BufferPtr buffer_;
    ContextPtr repacked_context_;
    std::vector<BufferPtr> repacked_buffers_;
};

}  // namespace hotcache
