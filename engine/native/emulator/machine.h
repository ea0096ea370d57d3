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

class Machine {
public:
    explicit Machine(const Settings & settings);

    const Settings & settings() const { return settings_; }
    double throttle(Throttle throttle) const { return throttles_[static_cast<size_t>(throttle)].load(); }
    void set_throttle(Throttle throttle, double value) { throttles_[static_cast<size_t>(throttle)].store(value); }

    // Each returns the modelled end of work that could begin at `ready`; an unthrottled resource takes no time.
    Instant transfer(Instant ready, size_t bytes, Direction direction);
    Instant device_work(Instant ready, uint64_t launches, size_t bytes);
    Instant host_work(Instant ready, size_t expert_bytes);

    // Where modelled work that took real time until now leaves its user: at `modelled_end`, or now if that has passed.
    Instant finish_device_work(Instant modelled_end);
    Instant finish_host_work(Instant modelled_end);

    // Keeps the calling thread until `deadline`.
    void hold_until(Instant deadline);

    // False when the memory is full.
    bool claim_vram(size_t bytes);
    void release_vram(size_t bytes);
    size_t free_vram_bytes() const { return settings_.vram_bytes - vram_used_bytes_.load(); }

    emu_counter_values counters() const;

private:
    using Counter = std::atomic<uint64_t>;

    Settings settings_;
    std::array<std::atomic<double>, throttle_count> throttles_;
    Timeline link_;
    Timeline device_;
    Timeline host_;

    Counter h2d_bytes_{0}, d2h_bytes_{0}, h2d_transfers_{0}, d2h_transfers_{0};
    Counter graphs_{0}, launches_{0}, device_bytes_{0}, host_expert_bytes_{0};
    Counter vram_used_bytes_{0}, vram_peak_bytes_{0};
    Counter link_busy_ns_{0}, device_busy_ns_{0}, host_busy_ns_{0}, device_late_ns_{0}, host_late_ns_{0}, held_ns_{0};
};

}  // namespace emu
