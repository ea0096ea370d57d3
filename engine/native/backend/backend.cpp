#include "backend.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <exception>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cache/guard.h"
#include "cache/prompt_choice.h"
#include "data_path.h"
#include "device.h"
#include "engine.h"
#include "routed_ffn.h"

namespace hotcache {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_cpu(ggml_backend_t backend) {
    return ggml_backend_dev_type(ggml_backend_get_device(backend)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

template <typename Function>
Function backend_function(ggml_backend_t backend, const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(reg, name));
}

void forward_n_threads(ggml_backend_t backend, int n_threads) {
    if (auto set = backend_function<ggml_backend_set_n_threads_t>(backend, "ggml_backend_set_n_threads")) {
        set(backend, n_threads);
    }
}

// For programs that know nothing of the C API: what the cache did, in their own log.
void log_summary(const std::vector<LayerReport> & layers) {
    int64_t hits = 0, misses = 0, promotions = 0, bytes = 0;
    for (const LayerReport & layer : layers) {
        hits += layer.counters.hits;
        misses += layer.counters.misses;
        promotions += layer.counters.promotions;
        bytes += layer.slot_bytes;
    }
    if (hits + misses == 0) { return; }
    ggml_log_internal(GGML_LOG_LEVEL_INFO,
                      "hotcache: %lld hits, %lld misses (hit rate %.3f), %lld promotions, %zu layers, %.1f MiB of slots\n",
                      static_cast<long long>(hits), static_cast<long long>(misses),
                      static_cast<double>(hits) / static_cast<double>(hits + misses),
                      static_cast<long long>(promotions), layers.size(), static_cast<double>(bytes) / (1 << 20));
}

// Several contexts may compute at once, each with a Backend of its own; one Backend computes one split at a time.
class Backend final : public Guest {
  public:
    Backend(Engine & engine, Workers workers, bool on_device_path)
        : engine_(engine), workers_(std::move(workers)), fast_device_(device_of(workers_.fast)) {
        path_ = on_device_path ? make_device_path(workers_, engine_.promoter()) : make_host_path(workers_, engine_.promoter());
        on_device_path_ = on_device_path;
        engine_.enter(*this);
    }

    // Devices may be torn down after the last context: no copy may still be on its way then.
    ~Backend() override {
        settle();
        unpin();
        engine_.leave(*this);
        engine_.promoter().drain();
        log_summary(engine_.reports());
    }
    Backend(const Backend &) = delete;
    Backend & operator=(const Backend &) = delete;

    ggml_status compute(ggml_cgraph * graph, ggml_backend_buffer_type_t expert_buft) {
        const auto ffn = recognise(*graph, expert_buft);
        step_begins_ = ffn && begins_step(*ffn);
        if (step_begins_) { engine_.tend(); }
        const auto in_use = engine_.use();
        renew();
        struct Split {
            DataPath & path;
            ~Split() { path.end_split(); }
        } const split{*path_};
        const bool inputs_are_here = path_->begin_split(*graph, engine_.allocations());
        if (!inputs_are_here) {
            ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: inputs of a broken-off evaluation are gone\n");
        }
        return inputs_are_here ? compute_split(*graph, ffn) : GGML_STATUS_FAILED;
    }

    // What stands on the scheduler's own stream is in order with everything that may read it, and is waited for with it.
    void synchronize() {
        if (path_->on_borrowed_stream()) { return; }
        settle();
        unpin();
    }

    void settle() override { path_->settle(); }

    bool copy_in(ggml_backend_t from, const ggml_tensor * src, ggml_tensor * dst) {
        return path_->copy_in(from, src, dst, engine_.allocations());
    }

    void set_n_threads(int n_threads) {
        n_threads_ = n_threads;
        forward_n_threads(workers_.cold.get(), n_threads);
        if (workers_.fast != nullptr && is_cpu(workers_.fast.get())) { forward_n_threads(workers_.fast.get(), n_threads); }
    }

    void set_abort_callback(ggml_abort_callback callback, void * data) {
        abort_callback_ = callback;
        abort_data_ = data;
        if (auto set = backend_function<ggml_backend_set_abort_callback_t>(workers_.cold.get(),
                                                                           "ggml_backend_set_abort_callback")) {
            set(workers_.cold.get(), callback, data);
        }
    }

  private:
    struct Pinned {
        std::shared_ptr<Layer> layer;
        int slot;
    };

    ggml_status compute_split(ggml_cgraph & graph, const std::optional<RoutedFfn> & ffn) {
        if (!ffn || !path_->reaches(*ffn)) { return path_->run_cold(graph); }
        const auto settings = engine_.settings();
        const bool prompt = ffn->n_tokens() >= prefill_tokens;
        if (prompt && !engine_.has_slots()) { path_->reserve_prompt(graph, *ffn, staging_bytes(*settings)); }
        const auto layer = engine_.layer_of(*ffn);
        if (layer->weights() != ffn->weights) { return path_->run_cold(graph); }
        if (prompt) { return compute_prompt(graph, *ffn, layer, *settings); }
        return compute_cached(graph, *ffn, layer, *settings);
    }

    static ggml_backend_dev_t device_of(const BackendPtr & backend) {
        return backend == nullptr ? nullptr : ggml_backend_get_device(backend.get());
    }

    // Slots were dropped or moved: chains point at memory that is gone, and the tiers may be other devices now.
    void renew() {
        const int64_t generation = engine_.generation();
        if (generation == generation_) { return; }
        generation_ = generation;
        settle();
        unpin();
        guard_.restart();
        const auto settings = engine_.settings();
        ggml_backend_dev_t cold_device = Engine::cold_device(*settings);
        if (cold_device != nullptr && cold_device != device_of(workers_.cold)) {
            if (BackendPtr cold{ggml_backend_dev_init(cold_device, nullptr)}) { workers_.cold = std::move(cold); }
        }
        ggml_backend_dev_t fast_device = Engine::fast_device(*settings);
        if (on_device_path_) {
            // This context's tensors lie on the device it began with.
            warn_unless(fast_device == fast_device_, "another fast device takes effect in a new context");
        } else if (fast_device != device_of(workers_.fast)) {
            workers_.fast.reset(fast_device == nullptr ? nullptr : ggml_backend_dev_init(fast_device, nullptr));
            warn_unless(workers_.fast != nullptr || !settings->on(), "no ggml device for the fast tier: the cache is off");
        }
        path_->forget_chains();
        set_n_threads(n_threads_);
        set_abort_callback(abort_callback_, abort_data_);
    }

    static void warn_unless(bool good, const char * problem) {
        if (!good) { ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: %s\n", problem); }
    }

    // A step begins where the layers' numbers go back, or one comes again. Not with a certain layer: any may stop being
    // recognised, by an adapter or an observer, and the last one of a prompt has only the rows that are asked for.
    bool begins_step(const RoutedFfn & ffn) const {
        return ffn.key() == first_of_step_ || ffn.key() == last_seen_ || layer_number(ffn.key()) < last_number_;
    }

    Guard::Kind kind_of_step(const RoutedFfn & ffn, Layer & layer, const Settings & settings) {
        last_seen_ = ffn.key();
        last_number_ = layer.index();
        buffers_.insert(ffn.key()->buffer);
        if (step_begins_) {
            first_of_step_ = ffn.key();
            layer_in_step_ = 0;
            layer_is_open_ = false;  // what came after the last layer is not the model's alone
            if (!guard_.pays() && !engine_.paused(ffn.key()->buffer)) { guard_.retry(); }
            const bool paid = guard_.pays();
            const int64_t trials = guard_.trials();
            step_ = settings.guard && settings.on() ? guard_.begin_step(ffn.n_tokens(), warm(layer)) : Guard::Kind::cached;
            if (guard_.trials() != trials) { report_verdict(paid); }
        }
        return step_;
    }

    static bool warm(Layer & layer) {
        const std::lock_guard<std::mutex> lock(layer.mutex);
        return layer.counters.steps > 1000 || layer.table.full();
    }

    void report_verdict(bool paid_before) {
        if (guard_.pays()) {
            engine_.vindicated(buffers_);
        } else {
            engine_.pause(buffers_);
        }
        if (guard_.pays() == paid_before && paid_before) { return; }
        ggml_log_internal(GGML_LOG_LEVEL_INFO, "hotcache: %s: %.3f ms a step with it, %.3f ms without\n",
                          guard_.pays() ? "the cache pays" : "the cache does not pay and is off",
                          1e3 * guard_.costs().cached_s, 1e3 * guard_.costs().plain_s);
    }

    // A layer lasts from knowing its experts to knowing the next one's, when nothing of it can still be unfinished.
    void next_layer() {
        const auto now = Clock::now();
        if (layer_is_open_) {
            guard_.record(layer_in_step_, std::chrono::duration<double>(now - layer_began_).count());
            ++layer_in_step_;
        }
        layer_began_ = now;
        layer_is_open_ = true;
    }

    ggml_status compute_cached(ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                               const Settings & settings) {
        const bool ahead = start_ahead(graph, ffn, *layer, settings);
        const std::vector<int32_t> & ids = path_->routing(ffn, layer->missed_last);
        unpin();
        const Guard::Kind kind = kind_of_step(ffn, *layer, settings);
        next_layer();
        const bool plain = workers_.fast == nullptr || kind == Guard::Kind::plain || (kind == Guard::Kind::cached && !guard_.pays(layer_in_step_));
        layer->pays = guard_.pays(layer_in_step_);
        const bool sorted = sort_pairs(ffn, ids, *layer, plain, true, ahead);
        if (ahead) { let_go(layer, sorted); }
        if (!sorted) { return GGML_STATUS_FAILED; }
        for (const Pair & pair : hot_pairs_) { pinned_.push_back({layer, pair.slice}); }
        StepTimes times;
        ggml_status status = GGML_STATUS_SUCCESS;
        bool split = true;
        if (hot_pairs_.empty() && layer->repacked_bytes() == 0 && !on_device_path_) {
            status = run_plain(graph, times);
        } else {
            split = path_->run_split(graph, ffn, layer, hot_pairs_, cold_pairs_, times, status);
            if (!split) { status = run_plain(graph, times); }
        }
        if (!on_device_path_) { unpin(); }
        finish(ffn, layer, settings, times, plain, split, ahead);
        return status;
    }

    // A batch of a prompt: all on the cold device, or all on the fast one. The guard's samples are of other steps.
    ggml_status compute_prompt(ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                               const Settings & settings) {
        if (settings.changes_slots(prompt_settings_) || n_threads_ != prompt_threads_) {
            // What was found faster was so with other slots, or other threads for what misses them.
            prompt_choice_ = PromptChoice();
            prompt_settings_ = settings;
            prompt_threads_ = n_threads_;
        }
        const bool choosing = settings.prefill == Prefill::automatic;
        const PromptWay way = choosing                              ? prompt_choice_.next(ffn.n_tokens())
                              : settings.prefill == Prefill::stream ? PromptWay::stream
                                                                    : PromptWay::cold;
        const bool timed = choosing && prompt_choice_.undecided(ffn.n_tokens());
        const std::vector<int32_t> & ids = path_->routing(ffn, false);
        unpin();
        const auto start = Clock::now();
        if (!sort_pairs(ffn, ids, *layer, false, settings.prefill_heat, false)) { return GGML_STATUS_FAILED; }
        for (const Pair & pair : hot_pairs_) { pinned_.push_back({layer, pair.slice}); }
        ggml_status status = GGML_STATUS_SUCCESS;
        int64_t streamed_bytes = 0;
        const bool streamed = way == PromptWay::stream &&
                              path_->run_prompt(graph, ffn, layer, hot_pairs_, cold_pairs_,
                                                staging_bytes(settings), streamed_bytes, status);
        if (!streamed) { status = path_->run_cold(graph); }
        if (way == PromptWay::stream && !streamed) {
            // It lacked memory, or the device cannot do it at all, which more memory does not change.
            if (++stream_failures_ <= most_stream_failures) {
                engine_.ask_for(2 * staging_bytes(settings));
            } else if (choosing) {
                prompt_choice_.record(ffn.n_tokens(), PromptWay::stream, never_s);
            }
        }
        if (streamed) { stream_failures_ = 0; }
        if (timed && streamed == (way == PromptWay::stream)) {
            settle();
            prompt_choice_.record(ffn.n_tokens(), way, seconds_since(start));
        }
        const std::lock_guard<std::mutex> lock(layer->mutex);
        layer->counters.prompt_steps += 1;
        layer->counters.streamed_steps += streamed ? 1 : 0;
        layer->counters.streamed_bytes += streamed_bytes;
        return status;
    }

    size_t staging_bytes(const Settings & settings) const {
        if (settings.staging_bytes != Settings::automatic) { return static_cast<size_t>(settings.staging_bytes); }
        size_t free_bytes = 0;
        size_t total_bytes = 0;
        ggml_backend_dev_memory(device_of(workers_.fast), &free_bytes, &total_bytes);
        return total_bytes / 128;
    }

    ggml_status run_plain(ggml_cgraph & graph, StepTimes & times) {
        const auto start = Clock::now();
        const ggml_status status = path_->run_cold(graph);
        times.cold_s = seconds_since(start);
        return status;
    }

    // Where most pairs hit, they are computed before anybody here knows them. Every slot stays as it is until that is known.
    bool start_ahead(const ggml_cgraph & graph, const RoutedFfn & ffn, Layer & layer, const Settings & settings) {
        if (!on_device_path_ || settings.ahead == Choice::no || ffn.n_tokens() != 1) { return false; }
        if (step_ == Guard::Kind::plain || (step_ == Guard::Kind::cached && !layer.pays)) { return false; }
        {
            const std::lock_guard<std::mutex> lock(layer.mutex);
            if (settings.ahead == Choice::automatic && layer.hit_share < least_hit_share_ahead) { return false; }
            slots_.resize(static_cast<size_t>(ffn.n_expert()));
            held_.clear();
            for (int expert = 0; expert < ffn.n_expert(); ++expert) {
                const int slot = layer.table.slot_of(expert);
                slots_[static_cast<size_t>(expert)] = slot;
                if (slot != SlotTable::none) { held_.push_back(slot); }
            }
            if (held_.empty()) { return false; }
            for (const int slot : held_) { layer.table.pin(slot); }
        }
        // A miss reads some slot or other; what comes of it is overwritten.
        readable_slots_ = slots_;
        std::replace(readable_slots_.begin(), readable_slots_.end(), SlotTable::none, held_.front());
        if (path_->start_ahead(graph, ffn, layer, readable_slots_)) { return true; }
        const std::lock_guard<std::mutex> lock(layer.mutex);
        for (const int slot : held_) { layer.table.unpin(slot); }
        return false;
    }

    // The pairs are known and their slots pinned: but for the one that misses read, the others are free again. Unknown
    // pairs may be reading all of them.
    void let_go(const std::shared_ptr<Layer> & layer, bool pairs_are_known) {
        const std::lock_guard<std::mutex> lock(layer->mutex);
        for (const int slot : held_) {
            if (pairs_are_known && (slot != held_.front() || cold_pairs_.empty())) {
                layer->table.unpin(slot);
            } else {
                pinned_.push_back({layer, slot});
            }
        }
    }

    // Sorts the batch's pairs by tier and pins the slots they will be read from; those computed `ahead` as the device has
    // sorted them. False for ids that are no expert's.
    bool sort_pairs(const RoutedFfn & ffn, const std::vector<int32_t> & ids, Layer & layer, bool plain, bool sighting,
                    bool ahead) {
        hot_pairs_.clear();
        cold_pairs_.clear();
        const int n_expert = ffn.n_expert();
        const auto odd = std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id < 0 || id >= n_expert; });
        if (odd != ids.end()) {
            ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: expert id %d of %d\n", *odd, n_expert);
            return false;
        }
        const auto asked = Clock::now();
        const std::lock_guard<std::mutex> lock(layer.mutex);
        layer.counters.stall_s += seconds_since(asked);
        const int n_used = ffn.n_used();
        for (int i = 0; i < static_cast<int>(ids.size()); ++i) {
            const int32_t expert = ids[static_cast<size_t>(i)];
            if (sighting) { layer.table.see(expert); }
            const int slot = plain   ? SlotTable::none
                             : ahead ? slots_[static_cast<size_t>(expert)]
                                     : layer.table.slot_of(expert);
            if (slot == SlotTable::none) {
                cold_pairs_.push_back({i / n_used, i % n_used, expert});
            } else {
                layer.table.pin(slot);
                hot_pairs_.push_back({i / n_used, i % n_used, slot});
            }
        }
        return true;
    }

    void unpin() {
        for (const Pinned & pinned : pinned_) {
            const std::lock_guard<std::mutex> lock(pinned.layer->mutex);
            pinned.layer->table.unpin(pinned.slot);
        }
        pinned_.clear();
    }

    // Counts, and lets the policy decide what moves next.
    void finish(const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer, const Settings & settings,
                const StepTimes & times, bool plain, bool split, bool ahead) {
        const int64_t room_bytes = settings.in_flight_bytes - engine_.promoter().in_flight_bytes();
        const auto room = static_cast<int>(std::clamp<int64_t>(room_bytes / std::max<int64_t>(layer->expert_bytes(), 1), 0, 1 << 20));
        std::vector<Promotion> promotions;
        {
            const std::lock_guard<std::mutex> lock(layer->mutex);
            LayerCounters & c = layer->counters;
            c.steps += 1;
            c.device_steps += on_device_path_ ? 1 : 0;
            c.plain_steps += plain ? 1 : 0;
            c.ahead_steps += ahead ? 1 : 0;
            c.whole_steps += split && cold_pairs_.empty() ? 1 : 0;
            const auto hits = static_cast<int64_t>(split ? hot_pairs_.size() : 0);
            c.hits += hits;
            c.misses += static_cast<int64_t>(hot_pairs_.size() + cold_pairs_.size()) - hits;
            c.hot_s += times.hot_s;
            c.cold_s += times.cold_s;
            c.wait_s += times.wait_s;
            if (!plain) {
                const double share = static_cast<double>(hits) / static_cast<double>(hot_pairs_.size() + cold_pairs_.size());
                layer->hit_share += (share - layer->hit_share) / hit_share_steps;
            }
            layer->missed_last = !cold_pairs_.empty();
            promotions = layer->filling ? fill(*layer, room)
                                        : layer->table.advance(ffn.n_tokens(), settings.policy, layer->pays ? room : 0);
        }
        engine_.promoter().enqueue(layer, promotions);
    }

    // As many of the empty slots as the link has room for; the rest at a later step.
    static std::vector<Promotion> fill(Layer & layer, int room) {
        std::vector<Promotion> promotions = layer.table.fill();
        layer.filling = static_cast<int>(promotions.size()) > room;
        while (static_cast<int>(promotions.size()) > room) {
            layer.table.cancel(promotions.back().slot);
            promotions.pop_back();
        }
        return promotions;
    }

    // Below this some pair of a token usually misses, and then starting ahead only delays the input on its way down.
    static constexpr double least_hit_share_ahead = 0.95;
    static constexpr int most_stream_failures = 3;
    static constexpr double never_s = 1e9;
    static constexpr double hit_share_steps = 4.0;

    Engine & engine_;
    Workers workers_;
    ggml_backend_dev_t fast_device_;
    std::unique_ptr<DataPath> path_;
    bool on_device_path_ = false;
    int64_t generation_ = -1;
    int n_threads_ = 1;
    ggml_abort_callback abort_callback_ = nullptr;
    void * abort_data_ = nullptr;

    // Of the step being computed.
    Guard guard_;
    Guard::Kind step_ = Guard::Kind::cached;
    const ggml_tensor * first_of_step_ = nullptr;
    const ggml_tensor * last_seen_ = nullptr;
    int last_number_ = INT_MAX;  // of the layer last seen
    std::set<ggml_backend_buffer_t> buffers_;  // of the model's experts
    int layer_in_step_ = 0;
    bool layer_is_open_ = false;
    Clock::time_point layer_began_{};

    PromptChoice prompt_choice_;
    Settings prompt_settings_;  // when it began
    int prompt_threads_ = 0;
    int stream_failures_ = 0;  // in a row

    // Of the split being computed.
    bool step_begins_ = false;
    std::vector<Pair> hot_pairs_;
    std::vector<Pair> cold_pairs_;
    std::vector<int32_t> slots_;           // by expert, when it was started ahead
    std::vector<int32_t> readable_slots_;  // the same, with a slot for those that have none
    std::vector<int> held_;
    std::vector<Pinned> pinned_;  // what the fast device may still read
};

Backend & self(ggml_backend_t backend) { return *static_cast<Backend *>(backend->context); }

const char * backend_name(ggml_backend_t) { return "HOTCACHE"; }

void backend_free(ggml_backend_t backend) {
    delete static_cast<Backend *>(backend->context);
    delete backend;
}

// No exception may leave through C.
ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    try {
        return self(backend).compute(graph, expert_buffer_type());
    } catch (const std::exception & error) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: %s\n", error.what());
        return GGML_STATUS_FAILED;
    }
}

void backend_synchronize(ggml_backend_t backend) { self(backend).synchronize(); }

bool backend_copy_in(ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
    return self(to).copy_in(from, src, dst);
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = {0x6d, 0x6f, 0x65, 0x74, 0x75, 0x6e, 0x65, 0x2d, 0x68, 0x6f, 0x74, 0x63, 0x61, 0x63, 0x68, 0x65};
    return &guid;
}

}  // namespace

ggml_backend_t make_backend(Engine & engine, ggml_backend_dev_t device, bool on_device_path) {
    const auto settings = engine.settings();
    const auto init = [](ggml_backend_dev_t d) { return BackendPtr(d == nullptr ? nullptr : ggml_backend_dev_init(d, nullptr)); };
    Workers workers;
    workers.cold = init(Engine::cold_device(*settings));
    workers.tail.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    if (on_device_path) { workers.fast = init(Engine::fast_device(*settings)); }
    if (workers.cold == nullptr || workers.tail == nullptr || (on_device_path && workers.fast == nullptr)) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: no backend to compute on\n");
        return nullptr;
    }
    forward_n_threads(workers.tail.get(), 1);
    ggml_backend_i iface{};
    iface.get_name = backend_name;
    iface.free = backend_free;
    iface.graph_compute = backend_compute;
    iface.synchronize = backend_synchronize;
    iface.cpy_tensor_async = backend_copy_in;
    return new ggml_backend{backend_guid(), iface, device, new Backend(engine, std::move(workers), on_device_path)};
}

void set_n_threads(ggml_backend_t backend, int n_threads) { self(backend).set_n_threads(n_threads); }

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    self(backend).set_abort_callback(callback, data);
}

}  // namespace hotcache
