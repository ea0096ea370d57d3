// What all contexts of the process share: settings, the layers with their slots, the promoter.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "cache/routing_profile.h"
#include "cache/settings.h"
#include "expert_registry.h"
#include "layer.h"
#include "promoter.h"

namespace hotcache {

// From this many tokens on a batch is prompt processing: most experts are used anyway, so a decision is made for whole
// layers instead of pairs. llama.cpp's scheduler has the same threshold.
constexpr int prefill_tokens = 32;

constexpr const char * own_device_name = "HOTCACHE";

struct LayerReport {
    int index;
    int n_slots;
    int64_t slot_bytes;
    int64_t repacked_bytes;
    bool pays;
    LayerCounters counters;
};

struct ExpertReport {
    double heat;
    bool resident;
};

// A context that computes with the engine's slots.
class Guest {
  public:
    virtual ~Guest() = default;
    // Waits until nothing this context has started still reads a slot. Any thread may call it.
    virtual void settle() = 0;
};

class Engine {
  public:
    using Clock = std::chrono::steady_clock;

    Engine();

    // Held by a context while it computes a split: layers and their slots stay where they are.
    std::shared_lock<std::shared_mutex> use() {
        const std::lock_guard<std::mutex> turn(turnstile_);
        return std::shared_lock(in_use_);
    }
    void enter(Guest & guest);
    void leave(Guest & guest);
    // Waits for every context's unfinished work.
    void settle();

    std::shared_ptr<const Settings> settings() const;
    // Changes with every set of slots: what was built on older ones is void.
    int64_t generation() const { return generation_.load(std::memory_order_acquire); }

    // Sets one value while contexts may be computing. Returns an empty string or what is wrong with it.
    std::string set(const std::string & key, const std::string & value);
    // Empties all slots and forgets all heat.
    void clear();
    // Between two steps, at most a few times a second: gives slots back when the fast tier runs short of memory, and
    // takes them again when there is room.
    void tend();

    // The fast tier had no room for something that is worth more than slots.
    void ask_for(int64_t bytes) { asked_bytes_ = bytes; }
    bool has_slots() const;

    // Whether products of a batch of so many tokens should come to this backend. A cache that is off does not ask for
    // them at all, so the scheduler makes no splits for it: it costs nothing. What is decided here takes effect when
    // llama.cpp next builds a graph, which it does for every new batch size and every few hundred tokens.
    // `weights`: the buffer of the model they belong to.
    bool wants(int64_t n_tokens, bool on_device_path, ggml_backend_buffer_t weights) const;

    // The guard of a context found that the cache costs more than it gains: leave the model whose weights lie in these
    // buffers to llama.cpp for a while.
    void pause(const std::set<ggml_backend_buffer_t> & model);
    // The cache pays: the next pause is a short one again.
    void vindicated(const std::set<ggml_backend_buffer_t> & model);
    bool paused(ggml_backend_buffer_t weights) const;

    // The layer of this FFN, with whatever slots there are for it. Call inside `use()`.
    std::shared_ptr<Layer> layer_of(const RoutedFfn & ffn);
    Promoter & promoter() { return promoter_; }

    std::vector<LayerReport> reports();
    // Of the layer with that index; empty when there is none.
    std::vector<ExpertReport> experts_of(int layer);
    void reset_counters();

    // An expert tensor was given memory in `buffer`, or all of that memory goes.
    void note_weight(ggml_backend_buffer_t buffer, const ggml_tensor * weight);
    void forget_buffer(ggml_backend_buffer_t buffer);

    // Whether a model that loads now is to have its expert weights in the plugin's memory.
    bool holds_weights() const;
    // While a model loads: llama.cpp asks whether this weight could lie in the plugin's host memory.
    void note_question(const ggml_tensor * weight);

    // Memory of the fast device was refused to a context's graph: gives slots back to make room for it, as far as there
    // are any.
    void make_room(size_t bytes);
    // A tensor of some context's graph was given memory in the fast device.
    void note_allocation() { allocations_.fetch_add(1, std::memory_order_relaxed); }
    // How often that happened.
    int64_t allocations() const { return allocations_.load(std::memory_order_relaxed); }

    // Whether a new context's splits should stay in the fast device's memory.
    bool device_path_for_new_context() const;

    // ggml device of the fast tier by the current settings; null when there is none. Never this library's own device.
    static ggml_backend_dev_t fast_device(const Settings & settings);
    // ggml device that computes misses and everything not recognised; the CPU where the one asked for is not there.
    static ggml_backend_dev_t cold_device(const Settings & settings);

  private:
    struct Pause {
        Clock::time_point until{};
        double next_s = shortest_pause_s;
    };

    void drop_layers(bool keep_heat);
    void adopt(std::shared_ptr<const Settings> settings);
    static std::string load_profile(const Settings & settings, std::shared_ptr<const RoutingProfile> & profile);
    static std::string check_workload(const Settings & settings, const RoutingProfile * profile);
    void plan_slots();
    std::vector<double> recorded_counts(int layer) const;
    int64_t spare_bytes(const Settings & settings) const;
    int64_t slot_bytes() const;
    int64_t promised_bytes() const;

    static constexpr double shortest_pause_s = 60.0;
    static constexpr double longest_pause_s = 1800.0;
    static constexpr double pause_growth = 4.0;

    std::shared_mutex in_use_;
    std::mutex turnstile_;  // held by who waits to be alone: those who come later queue up behind
    mutable std::mutex mutex_;  // guards what follows
    std::shared_ptr<const Settings> settings_;
    std::shared_ptr<const RoutingProfile> profile_;  // null without one
    std::map<const ggml_tensor *, std::shared_ptr<Layer>> layers_;
    std::map<const ggml_tensor *, int> planned_slots_;  // by expert tensor, every one of its family
    std::map<const ggml_tensor *, SlotTable> known_heat_;  // of layers whose slots were given back
    ExpertRegistry experts_;
    std::set<Guest *> guests_;
    int64_t ceiling_bytes_ = unlimited;  // of all slots together, after some were given back
    int64_t wanted_bytes_ = 0;           // of all slots together, had there been room
    Clock::time_point last_tended_{};
    Clock::time_point last_resized_{};

    static constexpr int64_t unlimited = INT64_MAX;

    std::atomic<int64_t> generation_{0};
    std::atomic<int64_t> allocations_{0};
    std::atomic<int64_t> asked_bytes_{0};
    std::atomic<bool> wants_small_batches_{false};
    std::atomic<bool> wants_always_{false};
    std::atomic<bool> wants_prompts_{false};
    mutable std::mutex pause_mutex_;  // guards what follows
    std::map<ggml_backend_buffer_t, Pause> pauses_;
    Promoter promoter_;  // last: its thread ends before the layers go
};

}  // namespace hotcache
