#include "backend.h"

#include <chrono>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chain.h"
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

enum class Tier { hot, cold };

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

constexpr size_t most_chains = 64;

// Chains of one routed FFN by number of pairs. Two shapes: the pairs of one token, and pairs of several tokens.
struct ChainSet {
    std::shared_ptr<Layer> layer;
    std::unordered_map<int, std::unique_ptr<Chain>> hot;
    std::unordered_map<int, std::unique_ptr<Chain>> cold;
};

// Several contexts may compute at once, each with a Backend of its own; one Backend computes one split at a time.
class Backend {
  public:
    Backend(Engine & engine, BackendPtr cold, BackendPtr tail)
        : engine_(engine),
          cold_(std::move(cold)),
          tail_(std::move(tail)) {}

    // Devices may be torn down after the last context: no copy may still be on its way then.
    ~Backend() {
        engine_.promoter().drain();
        log_summary(engine_.reports());
    }
    Backend(const Backend &) = delete;
    Backend & operator=(const Backend &) = delete;

    ggml_status compute(ggml_cgraph * graph, ggml_backend_buffer_type_t expert_buft) {
        const auto in_use = engine_.use();
        renew();
        const auto settings = engine_.settings();
        if ((settings->slots == 0 && settings->budget_bytes == 0) || fast_ == nullptr) { return run(graph); }
        const auto ffn = recognise(*graph, expert_buft);
        if (!ffn || ffn->n_tokens() >= prefill_tokens) { return run(graph); }
        const auto layer = engine_.layer_of(*ffn);
        if (layer == nullptr || layer->weights() != ffn->weights) { return run(graph); }
        return compute_cached(*graph, *ffn, layer, settings->policy);
    }

    void set_n_threads(int n_threads) {
        n_threads_ = n_threads;
        forward_n_threads(cold_.get(), n_threads);
        if (fast_ != nullptr && is_cpu(fast_.get())) { forward_n_threads(fast_.get(), n_threads); }
    }

    void set_abort_callback(ggml_abort_callback callback, void * data) {
        if (auto set = backend_function<ggml_backend_set_abort_callback_t>(cold_.get(),
                                                                           "ggml_backend_set_abort_callback")) {
            set(cold_.get(), callback, data);
        }
    }

  private:
    ggml_status run(ggml_cgraph * graph) { return ggml_backend_graph_compute(cold_.get(), graph); }

    // Slots were dropped or moved: chains point at memory that is gone, and the tiers may be other devices now.
    void renew() {
        const int64_t generation = engine_.generation();
        if (generation == generation_) { return; }
        generation_ = generation;
        chains_.clear();
        const auto settings = engine_.settings();
        ggml_backend_dev_t cold_device = Engine::cold_device(*settings);
        if (cold_device != nullptr && cold_device != ggml_backend_get_device(cold_.get())) {
            if (BackendPtr cold{ggml_backend_dev_init(cold_device, nullptr)}) { cold_ = std::move(cold); }
        }
        cold_scratch_ = std::make_unique<Scratch>(ggml_backend_dev_buffer_type(ggml_backend_get_device(cold_.get())));
        fast_.reset();
        hot_scratch_.reset();
        if (ggml_backend_dev_t fast_device = Engine::fast_device(*settings)) {
            fast_.reset(ggml_backend_dev_init(fast_device, nullptr));
            hot_scratch_ = std::make_unique<Scratch>(ggml_backend_dev_buffer_type(fast_device));
        } else {
            ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: no ggml device '%s' for the fast tier: the cache is off\n",
                              settings->device.empty() ? "GPU" : settings->device.c_str());
        }
        set_n_threads(n_threads_);
    }

    ggml_status compute_cached(ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                               const PolicySettings & policy) {
        if (!sort_pairs(ffn, *layer)) { return GGML_STATUS_FAILED; }
        Chain * hot = chain(graph, ffn, layer, Tier::hot, hot_pairs_.size());
        Chain * cold = chain(graph, ffn, layer, Tier::cold, cold_pairs_.size());
        const bool split = hot != nullptr && (cold != nullptr || cold_pairs_.empty());
        const ggml_status status = split ? both_tiers(graph, ffn, *hot, cold) : all_cold(graph);
        finish(ffn, layer, policy, split);
        return status;
    }

    // Sorts the batch's pairs by tier and pins the slots they will be read from.
    bool sort_pairs(const RoutedFfn & ffn, Layer & layer) {
        hot_pairs_.clear();
        cold_pairs_.clear();
        const int n_expert = ffn.n_expert();
        const std::lock_guard<std::mutex> lock(layer.mutex);
        for (int token = 0; token < ffn.n_tokens(); ++token) {
            for (int k = 0; k < ffn.n_used(); ++k) {
                int32_t expert = 0;
                std::memcpy(&expert, static_cast<const char *>(ffn.ids->data) + token * ffn.ids->nb[1] + k * ffn.ids->nb[0],
                            sizeof(expert));
                if (expert < 0 || expert >= n_expert) {
                    ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: expert id %d of %d\n", expert, n_expert);
                    for (const Pair & pair : hot_pairs_) { layer.table.unpin(pair.slice); }
                    return false;
                }
                layer.table.see(expert);
                const int slot = layer.table.slot_of(expert);
                if (slot == SlotTable::none) {
                    cold_pairs_.push_back({token, k, expert});
                } else {
                    layer.table.pin(slot);
                    hot_pairs_.push_back({token, k, slot});
                }
            }
        }
        hot_s_ = cold_s_ = wait_s_ = 0.0;
        return true;
    }

    ggml_status all_cold(ggml_cgraph & graph) {
        const auto start = Clock::now();
        const ggml_status status = run(&graph);
        cold_s_ = seconds_since(start);
        return status;
    }

    // Nothing is written to `ffn.out` before both chains have read x: the allocator may have given them one memory.
    ggml_status both_tiers(const ggml_cgraph & graph, const RoutedFfn & ffn, Chain & hot, Chain * cold) {
        ggml_cgraph head = ggml_abi::slice(graph, 0, ffn.first);
        ggml_status status = head.n_nodes == 0 ? GGML_STATUS_SUCCESS : run(&head);
        if (status != GGML_STATUS_SUCCESS) { return status; }

        const auto start = Clock::now();
        status = hot.start(fast_.get(), ffn, hot_pairs_);
        if (status == GGML_STATUS_SUCCESS) { hot.fetch(fast_.get()); }
        if (status == GGML_STATUS_SUCCESS && cold != nullptr) {
            const auto cold_start = Clock::now();
            status = cold->start(cold_.get(), ffn, cold_pairs_);
            if (status == GGML_STATUS_SUCCESS) { cold->fetch(cold_.get()); }
            ggml_backend_synchronize(cold_.get());
            cold_s_ = seconds_since(cold_start);
        }
        const auto wait_start = Clock::now();
        ggml_backend_synchronize(fast_.get());
        wait_s_ = seconds_since(wait_start);
        hot_s_ = seconds_since(start);
        if (status != GGML_STATUS_SUCCESS) { return status; }
        hot.scatter(ffn, hot_pairs_);
        if (cold != nullptr) { cold->scatter(ffn, cold_pairs_); }

        ggml_cgraph tail = ggml_abi::slice(graph, ffn.last + 1, graph.n_nodes);
        return tail.n_nodes == 0 ? status : ggml_backend_graph_compute(tail_.get(), &tail);
    }

    // Unpins, counts, and lets the policy decide what moves next.
    void finish(const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer, const PolicySettings & policy, bool split) {
        std::vector<Promotion> promotions;
        {
            const std::lock_guard<std::mutex> lock(layer->mutex);
            for (const Pair & pair : hot_pairs_) { layer->table.unpin(pair.slice); }
            LayerCounters & c = layer->counters;
            c.steps += 1;
            const auto hits = static_cast<int64_t>(split ? hot_pairs_.size() : 0);
            c.hits += hits;
            c.misses += static_cast<int64_t>(hot_pairs_.size() + cold_pairs_.size()) - hits;
            c.hot_s += hot_s_;
            c.cold_s += cold_s_;
            c.wait_s += wait_s_;
            promotions = layer->table.advance(ffn.n_tokens(), policy);
        }
        engine_.promoter().enqueue(layer, promotions);
    }

    // The chain for so many pairs; null when there are none, or no memory for it.
    Chain * chain(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer, Tier tier,
                  size_t pairs) {
        if (pairs == 0) { return nullptr; }
        const int n_pairs = static_cast<int>(pairs);
        ChainSet & set = chains_[ffn.key()];
        set.layer = layer;
        auto & chains = tier == Tier::hot ? set.hot : set.cold;
        Scratch & scratch = tier == Tier::hot ? *hot_scratch_ : *cold_scratch_;
        // The cold backend computes whatever the scheduler hands over; the fast one may lack an operation or a type.
        ggml_backend_t checked = tier == Tier::hot ? fast_.get() : nullptr;
        const int shape = ffn.n_tokens() == 1 ? n_pairs : -n_pairs;
        const auto known = chains.find(shape);
        // Null stays null until the slots change: what could not be built once is not tried for every token.
        if (known != chains.end() && (known->second == nullptr || known->second->fits(graph, ffn))) {
            return known->second.get();
        }
        // Batches of many sizes would otherwise pile up chains that are hardly used again.
        if (chains.size() >= most_chains) { chains.clear(); }
        const auto weight_of = [&](const ggml_tensor * w) {
            return tier == Tier::hot ? layer->slots_of(w) : const_cast<ggml_tensor *>(w);
        };
        chains[shape] = Chain::build(graph, ffn, n_pairs, weight_of, checked, scratch);
        return chains[shape].get();
    }

    Engine & engine_;
    BackendPtr cold_;  // computes misses and whatever is not recognised
    BackendPtr tail_;  // one thread: a few rows are not worth waking the others
    BackendPtr fast_;
    std::unique_ptr<Scratch> cold_scratch_;
    std::unique_ptr<Scratch> hot_scratch_;
    std::unordered_map<const ggml_tensor *, ChainSet> chains_;
    int64_t generation_ = -1;
    int n_threads_ = 1;

    // Of the split being computed.
    std::vector<Pair> hot_pairs_;
    std::vector<Pair> cold_pairs_;
    double hot_s_ = 0.0;
    double cold_s_ = 0.0;
    double wait_s_ = 0.0;
};

Backend & self(ggml_backend_t backend) { return *static_cast<Backend *>(backend->context); }

const char * backend_name(ggml_backend_t) { return "HOTCACHE"; }

void backend_free(ggml_backend_t backend) {
    delete static_cast<Backend *>(backend->context);
    delete backend;
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return self(backend).compute(graph, ggml_backend_dev_buffer_type(backend->device));
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = {0x6d, 0x6f, 0x65, 0x74, 0x75, 0x6e, 0x65, 0x2d, 0x68, 0x6f, 0x74, 0x63, 0x61, 0x63, 0x68, 0x65};
    return &guid;
}

}  // namespace

ggml_backend_t make_backend(Engine & engine, ggml_backend_dev_t device) {
    ggml_backend_dev_t cold_device = Engine::cold_device(*engine.settings());
    BackendPtr cold(cold_device == nullptr ? nullptr : ggml_backend_dev_init(cold_device, nullptr));
    BackendPtr tail(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    if (cold == nullptr || tail == nullptr) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: no CPU backend to compute on\n");
        return nullptr;
    }
    forward_n_threads(tail.get(), 1);
    ggml_backend_i iface{};
    iface.get_name = backend_name;
    iface.free = backend_free;
    iface.graph_compute = backend_compute;
    return new ggml_backend{backend_guid(), iface, device, new Backend(engine, std::move(cold), std::move(tail))};
}

void set_n_threads(ggml_backend_t backend, int n_threads) { self(backend).set_n_threads(n_threads); }

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    self(backend).set_abort_callback(callback, data);
}

}  // namespace hotcache
