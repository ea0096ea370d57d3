// The emulated machine as its devices share it: throttles, one link, one device memory, one host memory, and counters.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "clock.h"
#include "emulator.h"
#include "settings.h"

namespace emu {

enum class Direction { to_device, to_host };

// Who waits for a transfer: the rest of its queue, or the thread that asked for it.
enum class Asker { queue, caller };

class Machine {
public:
    explicit Machine(const Settings & settings);

    const Settings & settings() const { return settings_; }
    double dial(Dial dial) const { return dials_[static_cast<size_t>(dial)].load(); }
    void set_dial(Dial dial, double value);

    // Each returns the modelled end of work that could begin at `ready`; an unthrottled resource takes no time.
    Instant transfer(Instant ready, size_t bytes, Direction direction, Asker asker);
    Instant device_work(Instant ready, uint64_t launches, size_t bytes);
    Instant host_work(Instant ready, size_t expert_bytes);

    // Where modelled work that took real time until now leaves its user: at `modelled_end`, or now if that has passed.
    Instant finish_device_work(Instant modelled_end);
    Instant finish_host_work(Instant modelled_end);

    // Keeps the calling thread until `deadline`.
    void hold_until(Instant deadline);

    // Counts a graph that was handed in; false when this one fails. From the one that loses the device on, nothing moves
    // into, out of or within its memory.
    bool admit_graph();
    bool lost() const { return lost_.load(); }

    // False when the memory is full, or a fault is injected.
    bool claim_vram(size_t bytes);
    void release_vram(size_t bytes);
    size_t free_vram_bytes() const { return free_vram_bytes(vram_used_bytes_.load()); }

    emu_counter_values counters() const;

private:
    size_t free_vram_bytes(uint64_t used_bytes) const;

    using Counter = std::atomic<uint64_t>;

    Settings settings_;
    std::array<std::atomic<double>, dial_count> dials_;
    Timeline link_;
    Timeline device_;
    Timeline host_;

    Counter h2d_bytes_{0}, d2h_bytes_{0}, h2d_transfers_{0}, d2h_transfers_{0};
    Counter graphs_{0}, launches_{0}, device_bytes_{0}, host_expert_bytes_{0};
    Counter vram_used_bytes_{0}, vram_peak_bytes_{0};
    Counter allocations_{0}, refused_allocations_{0}, submitted_graphs_{0}, failed_graphs_{0};
    Counter lost_at_graph_{0};  // by submitted_graphs_; 0: never
    std::atomic<bool> lost_{false};
    Counter queue_link_wait_ns_{0}, caller_link_wait_ns_{0};
    Counter link_busy_ns_{0}, device_busy_ns_{0}, host_busy_ns_{0}, device_late_ns_{0}, host_late_ns_{0}, held_ns_{0};
};

}  // namespace emu
