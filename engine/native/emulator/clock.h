// Modelled time: when a resource of the emulated machine is busy, and how a thread waits for it.
//
// Costs add up on timelines, not in sleeps: a piece of work begins at the modelled end of the one before it, so a sleep
// that wakes late delays nothing but its own thread. Only whoever synchronises waits for the exact instant.
#pragma once

#include <algorithm>
#include <chrono>
#include <mutex>

namespace emu {

using Clock = std::chrono::steady_clock;
using Instant = Clock::time_point;
using Span = Clock::duration;

Span from_seconds(double seconds);

// Returns within about a microsecond of `deadline`: sleeps through most of it, spins through the rest.
void wait_until(Instant deadline);

// Sleeps only, and may return a few tens of microseconds late.
void doze_until(Instant deadline);

// One resource that serves one user at a time, in the order of the requests.
class Timeline {
public:
    struct Service {
        Instant begin;
        Instant end;
    };

    // `busy` units of service that cannot begin before `ready`.
    Service reserve(Instant ready, Span busy) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const Instant begin = std::max(ready, free_at_);
        free_at_ = begin + busy;
        return {begin, free_at_};
    }

private:
    std::mutex mutex_;
    Instant free_at_{};
};

}  // namespace emu
