#include "hotcache.h"

#include <cstdio>
#include <string>

#include "backend/device.h"
#include "backend/engine.h"

#define HOTCACHE_EXPORT __attribute__((visibility("default")))

extern "C" {

// What ggml looks up after it has opened the library.
HOTCACHE_EXPORT ggml_backend_reg_t ggml_backend_init(void) { return hotcache::registry(); }
HOTCACHE_EXPORT int ggml_backend_score(void) { return hotcache::registry() == nullptr ? 0 : 1; }

HOTCACHE_EXPORT int hotcache_set(const char * key, const char * value, char * error, size_t error_bytes) {
    std::string problem = "hotcache: not usable with this ggml";
    if (hotcache::Engine * engine = hotcache::engine()) {
        problem = key == nullptr || value == nullptr ? "hotcache_set: null argument" : engine->set(key, value);
    }
    if (error != nullptr && error_bytes > 0) { std::snprintf(error, error_bytes, "%s", problem.c_str()); }
    return problem.empty() ? 0 : -1;
}

HOTCACHE_EXPORT size_t hotcache_layers(hotcache_layer * layers, size_t capacity) {
    hotcache::Engine * engine = hotcache::engine();
    if (engine == nullptr) { return 0; }
    const auto reports = engine->reports();
    for (size_t i = 0; i < reports.size() && i < capacity; ++i) {
        const hotcache::LayerReport & r = reports[i];
        const hotcache::LayerCounters & c = r.counters;
        layers[i] = {r.index,        r.n_slots,      r.slot_bytes,       c.hits,           c.misses,
                     c.promotions,   c.evictions,    c.bytes_moved,      c.steps,          c.hot_s,
                     c.cold_s,       c.wait_s,       c.stall_s,          c.device_steps,   c.plain_steps,
                     c.prompt_steps, c.streamed_steps, c.streamed_bytes, r.repacked_bytes, r.pays ? 1 : 0, 0};
    }
    return reports.size();
}

HOTCACHE_EXPORT void hotcache_reset_counters(void) {
    if (hotcache::Engine * engine = hotcache::engine()) { engine->reset_counters(); }
}

HOTCACHE_EXPORT void hotcache_clear(void) {
    if (hotcache::Engine * engine = hotcache::engine()) { engine->clear(); }
}

}  // extern "C"
