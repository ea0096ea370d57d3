// The library's own C interface, next to ggml_backend_init and ggml_backend_score.
#pragma once

#include <cstddef>
#include <cstdint>

#define EMU_EXPORT __attribute__((visibility("default")))

extern "C" {

// Totals over the devices since registration. "busy" is modelled time; "late" is real time by which the arithmetic overran the model:
// where it is not small beside "busy", the numbers describe this computer and not the emulated machine.
struct emu_counter_values {
    uint64_t h2d_bytes;
    uint64_t d2h_bytes;
    uint64_t h2d_transfers;
    uint64_t d2h_transfers;
    uint64_t graphs;
    uint64_t launches;
    uint64_t device_bytes;
    uint64_t host_expert_bytes;
    uint64_t vram_used_bytes;
    uint64_t vram_peak_bytes;
    uint64_t link_busy_ns;
    uint64_t device_busy_ns;
    uint64_t host_busy_ns;
    uint64_t device_late_ns;
    uint64_t host_late_ns;
    uint64_t held_ns;  // real time that callers were kept waiting for the modelled clock
    // Modelled time that transfers stood in line because the link served somebody else: those of queues, and those that
    // a caller waits for.
    uint64_t queue_link_wait_ns;
    uint64_t caller_link_wait_ns;
    uint64_t refused_allocations;
    uint64_t failed_graphs;
};

enum emu_result { EMU_OK = 0, EMU_NOT_REGISTERED = 1, EMU_UNKNOWN_KEY = 2, EMU_BAD_VALUE = 3 };

// Changes a throttle, or injects a fault, while the machine runs; `key` is its environment variable. Work already queued
// may use either value; the loss of the device counts graphs from the call on.
EMU_EXPORT int emu_set(const char * key, const char * value);

// Fills the first `size_bytes` of `*out`, so that a caller may know fewer counters than the library has.
EMU_EXPORT int emu_counters(struct emu_counter_values * out, size_t size_bytes);

}  // extern "C"
