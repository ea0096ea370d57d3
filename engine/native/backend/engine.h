// What all contexts of the process share: settings, the layers with their slots, the promoter.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/settings.h"
#include "layer.h"
#include "promoter.h"

namespace hotcache {

// From this many tokens on a batch is prompt processing: most experts are used anyway, and llama.cpp's scheduler streams
// whole tensors to an accelerator (its own threshold is the same), so the cache leaves such batches alone.
constexpr int prefill_tokens = 32;

constexpr const char * own_device_name = "HOTCACHE";

struct LayerReport {
    int index;
    int n_slots;
    int64_t slot_bytes;
    LayerCounters counters;
};

class Engine {
  public:
    Engine();

    // Held by a context while it computes a split: layers and their slots stay where they are.
    std::shared_lock<std::shared_mutex> use() { return std::shared_lock(in_use_); }

    std::shared_ptr<const Settings> settings() const;
    // Changes with every set of slots: what was built on older ones is void.
    int64_t generation() const { return generation_.load(std::memory_order_acquire); }

    // Sets one value while contexts may be computing. Returns an empty string or what is wrong with it.
    std::string set(const std::string & key, const std::string & value);
    // Empties all slots and forgets all heat.
    void clear();

    // Whether products of a batch of so many tokens should come to this backend. A cache that is off does not ask for
    // them at all, so the scheduler makes no splits for it: it costs nothing. What is decided here takes effect when
    // llama.cpp next builds a graph, which it does for every new batch size and every few hundred tokens.
    bool wants(int64_t n_tokens) const {
        // llama.cpp also builds graphs for no tokens at all, and gives them no memory here.
        return n_tokens > 0 && n_tokens < prefill_tokens && wants_small_batches_.load(std::memory_order_relaxed);
    }

    // The layer of this FFN; null when the cache is off or the fast tier has no room for one slot. Call inside `use()`.
    std::shared_ptr<Layer> layer_of(const RoutedFfn & ffn);
    Promoter & promoter() { return promoter_; }

    std::vector<LayerReport> reports();
    void reset_counters();

    // An expert tensor was given memory in `buffer`, or all of that memory goes.
    void note_weight(ggml_backend_buffer_t buffer, const ggml_tensor * weight);
    void forget_buffer(ggml_backend_buffer_t buffer);

    // ggml device of the fast tier by the current settings; null when there is none. Never this library's own device.
    static ggml_backend_dev_t fast_device(const Settings & settings);
    // ggml device that computes misses and everything not recognised; the CPU where the one asked for is not there.
    static ggml_backend_dev_t cold_device(const Settings & settings);

  private:
    void drop_layers();
    void adopt(std::shared_ptr<const Settings> settings);
    int slots_for(const RoutedFfn & ffn, const Settings & settings) const;

    std::shared_mutex in_use_;
    mutable std::mutex mutex_;  // guards what follows
    std::shared_ptr<const Settings> settings_;
    std::map<const ggml_tensor *, std::shared_ptr<Layer>> layers_;
    std::unordered_map<ggml_backend_buffer_t, std::map<const ggml_tensor *, int64_t>> expert_bytes_;
    std::atomic<int64_t> generation_{0};
    std::atomic<bool> wants_small_batches_{false};
    Promoter promoter_;  // last: its thread ends before the layers go
};

}  // namespace hotcache
