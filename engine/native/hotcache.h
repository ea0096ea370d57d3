// C API of the hot-expert cache, for whoever has the library loaded. Thread-safe.
//
// Settings are the HOTCACHE_* environment variables in lower case without the prefix; cache/settings.h says what each does.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// One routed FFN. Counts are (token, expert) pairs and experts, times are seconds, all since the last reset.
struct hotcache_layer {
    int32_t layer;       // from the GGUF tensor name, -1 when it has none
    int32_t n_slots;     // really held, which is fewer than asked for when the fast tier is full
    int64_t slot_bytes;  // of all its slots
    int64_t hits;
    int64_t misses;
    int64_t promotions;
    int64_t evictions;
    int64_t bytes_moved;
    int64_t steps;
    double hot_s;   // from starting the hot chain to the join with the cold one; 0 on the device path, which waits for none
    double cold_s;  // in the cold chain
    double wait_s;  // waiting for the fast device with nothing else to do
    double stall_s; // waiting because experts were being promoted
    int64_t device_steps;    // of `steps`, with activations that stayed in the fast device's memory
    int64_t plain_steps;     // of `steps`, computed without the cache by the guard's decision
    int64_t ahead_steps;     // of `steps`, started on the fast device before the host knew the experts
    int64_t whole_steps;     // of `steps`, all pairs of which hit
    int64_t prompt_steps;    // batches of prompts
    int64_t streamed_steps;  // of these, on the fast device, experts without a slot streamed to it
    int64_t streamed_bytes;
    int64_t repacked_bytes;  // of the slow tier's second copy
    int32_t pays;            // 0: the guard has switched the cache off here
    int32_t reserved;
};

// 0, or -1 with the reason written to `error` (at most error_bytes with its final zero).
int hotcache_set(const char * key, const char * value, char * error, size_t error_bytes);

// Number of layers that have slots; fills at most `capacity` of `layers`.
size_t hotcache_layers(struct hotcache_layer * layers, size_t capacity);

// One expert of a layer: how often it was chosen of late, and whether a slot serves it now.
struct hotcache_expert {
    double heat;       // sightings while generating, each counting less the longer ago it was
    int32_t resident;  // 0 or 1
    int32_t reserved;
};

// Number of experts of the layer with that index among `hotcache_layers`, 0 when there is none; fills at most `capacity`.
size_t hotcache_experts(int32_t layer, struct hotcache_expert * experts, size_t capacity);

void hotcache_reset_counters(void);

// Empties all slots and forgets what was hot.
void hotcache_clear(void);

// Hits (pairs) among the tokens from `n_skip` on, had the cache served one layer's recorded routing token by token from
// empty slots: `ids` holds `n_used` different experts below `n_expert` for each of `n_tokens` tokens. `settings` are
// "key=value" lines; what they leave out is at its default, whatever the loaded cache is set to. A promotion serves from
// the second token after its cause on. -1 with the reason written to `error` when an argument is wrong.
int64_t hotcache_replay(const int32_t * ids, size_t n_tokens, int32_t n_used, int32_t n_expert, int32_t n_slots,
                        size_t n_skip, const char * settings, char * error, size_t error_bytes);

// The most hits of any cache that loads an expert only when a token uses it, knowing all that is to come (Belady).
int64_t hotcache_replay_optimal(const int32_t * ids, size_t n_tokens, int32_t n_used, int32_t n_expert, int32_t n_slots,
                                size_t n_skip, char * error, size_t error_bytes);

#ifdef __cplusplus
}
#endif
