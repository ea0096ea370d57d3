#include "hotcache.h"

#include <cstdio>
#include <new>
#include <string>

#include "backend/device.h"
#include "backend/engine.h"
#include "cache/replay.h"
#include "cache/settings.h"

#define HOTCACHE_EXPORT __attribute__((visibility("default")))

namespace {

void report(const std::string & problem, char * error, size_t error_bytes) {
    if (error != nullptr && error_bytes > 0) { std::snprintf(error, error_bytes, "%s", problem.c_str()); }
}

// What `hits_of` the trace returns, or -1 with what is wrong with the arguments.
template <typename HitsOf>
int64_t replayed(const hotcache::RoutingTrace & trace, int n_slots, std::string problem, char * error, size_t error_bytes,
                 HitsOf hits_of) {
    int64_t hits = -1;
    try {
        if (problem.empty() && trace.ids == nullptr && trace.n_tokens > 0) { problem = "there are no ids"; }
        if (problem.empty() && n_slots < 0) { problem = std::to_string(n_slots) + " slots: must be 0 or more"; }
        if (problem.empty()) { problem = hotcache::check_trace(trace); }
        if (problem.empty()) { hits = hits_of(trace); }
    } catch (const std::bad_alloc &) {
        problem = "no memory to replay " + std::to_string(trace.n_tokens) + " tokens";
    }
    report(problem, error, error_bytes);
    return hits;
}

}  // namespace

extern "C" {

// What ggml looks up after it has opened the library.
HOTCACHE_EXPORT ggml_backend_reg_t ggml_backend_init(void) { return hotcache::registry(); }
HOTCACHE_EXPORT int ggml_backend_score(void) { return hotcache::registry() == nullptr ? 0 : 1; }

HOTCACHE_EXPORT int hotcache_set(const char * key, const char * value, char * error, size_t error_bytes) {
    std::string problem = "hotcache: not usable with this ggml";
    if (hotcache::Engine * engine = hotcache::engine()) {
        problem = key == nullptr || value == nullptr ? "hotcache_set: null argument" : engine->set(key, value);
    }
    report(problem, error, error_bytes);
    return problem.empty() ? 0 : -1;
}

HOTCACHE_EXPORT size_t hotcache_layers(hotcache_layer * layers, size_t capacity) {
    hotcache::Engine * engine = hotcache::engine();
    if (engine == nullptr) { return 0; }
    const auto reports = engine->reports();
    for (size_t i = 0; i < reports.size() && i < capacity; ++i) {
        const hotcache::LayerReport & r = reports[i];
        const hotcache::LayerCounters & c = r.counters;
        layers[i] = {r.index,        r.n_slots,        r.slot_bytes,     c.hits,           c.misses,
                     c.promotions,   c.evictions,      c.bytes_moved,    c.steps,          c.hot_s,
                     c.cold_s,       c.wait_s,         c.stall_s,        c.device_steps,   c.plain_steps,
                     c.ahead_steps,  c.whole_steps,    c.prompt_steps,   c.streamed_steps, c.streamed_bytes,
                     r.repacked_bytes, r.pays ? 1 : 0, 0};
    }
    return reports.size();
}

HOTCACHE_EXPORT size_t hotcache_experts(int32_t layer, hotcache_expert * experts, size_t capacity) {
    hotcache::Engine * engine = hotcache::engine();
    if (engine == nullptr) { return 0; }
    const auto reports = engine->experts_of(layer);
    for (size_t i = 0; i < reports.size() && i < capacity; ++i) {
        experts[i] = {reports[i].heat, reports[i].resident ? 1 : 0, 0};
    }
    return reports.size();
}

HOTCACHE_EXPORT void hotcache_reset_counters(void) {
    if (hotcache::Engine * engine = hotcache::engine()) { engine->reset_counters(); }
}

HOTCACHE_EXPORT void hotcache_clear(void) {
    if (hotcache::Engine * engine = hotcache::engine()) { engine->clear(); }
}

HOTCACHE_EXPORT int64_t hotcache_replay(const int32_t * ids, size_t n_tokens, int32_t n_used, int32_t n_expert,
                                        int32_t n_slots, size_t n_skip, const char * settings, char * error,
                                        size_t error_bytes) {
    hotcache::Settings parsed;
    const std::string problem = hotcache::apply_settings(parsed, settings == nullptr ? "" : settings);
    return replayed({ids, n_tokens, n_used, n_expert}, n_slots, problem, error, error_bytes,
                    [&](const hotcache::RoutingTrace & trace) {
                        return hotcache::replay(trace, n_slots, n_skip, parsed.policy);
                    });
}

HOTCACHE_EXPORT int64_t hotcache_replay_optimal(const int32_t * ids, size_t n_tokens, int32_t n_used, int32_t n_expert,
                                                int32_t n_slots, size_t n_skip, char * error, size_t error_bytes) {
    return replayed({ids, n_tokens, n_used, n_expert}, n_slots, {}, error, error_bytes,
                    [&](const hotcache::RoutingTrace & trace) { return hotcache::replay_optimal(trace, n_slots, n_skip); });
}

}  // extern "C"
