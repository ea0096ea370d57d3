#include "clock.h"

#include <cerrno>
#include <ctime>

#include <sys/prctl.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace emu {

namespace {

// Late wake-ups mostly stay below this with a fine timer: 50 us are usual in a virtual machine, nine in ten below 75.
constexpr std::chrono::microseconds spin_span{100};

// Linux may delay a thread's timers by its slack, 50 us by default. The thread is often the program's own: restore it.
class FineTimer {
public:
    FineTimer() : slack_ns_(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)) { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }
    ~FineTimer() { prctl(PR_SET_TIMERSLACK, slack_ns_, 0, 0, 0); }
    FineTimer(const FineTimer &) = delete;
    FineTimer & operator=(const FineTimer &) = delete;

private:
    int slack_ns_;
};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

}  // namespace

Span from_seconds(double seconds) { return std::chrono::duration_cast<Span>(std::chrono::duration<double>(seconds)); }

void doze_until(Instant deadline) {
    if (deadline <= Clock::now()) { return; }
    const FineTimer fine;
    // libstdc++'s steady clock counts nanoseconds of CLOCK_MONOTONIC.
    const auto since_boot = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.time_since_epoch()).count();
    timespec when{};
    when.tv_sec = static_cast<time_t>(since_boot / 1'000'000'000);
    when.tv_nsec = static_cast<long>(since_boot % 1'000'000'000);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr) == EINTR) {}
}

void wait_until(Instant deadline) {
    doze_until(deadline - spin_span);
    while (Clock::now() < deadline) { relax(); }
}

}  // namespace emu
