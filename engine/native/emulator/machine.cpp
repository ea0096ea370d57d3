#include "machine.h"

namespace emu {

namespace {

uint64_t nanoseconds(Span span) {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(span).count());
}

double seconds_to_move(size_t bytes, double gbps) { return gbps > 0 ? static_cast<double>(bytes) / (gbps * 1e9) : 0; }

// The clock's granule is no modelled time: an unthrottled resource cannot be late.
Instant finish(Instant modelled_end, bool throttled, std::atomic<uint64_t> & late_ns) {
    const Instant now = Clock::now();
    if (now <= modelled_end) { return modelled_end; }
    if (throttled) { late_ns += nanoseconds(now - modelled_end); }
    return now;
}

}  // namespace

Machine::Machine(const Settings & settings) : settings_(settings) {
    for (size_t i = 0; i < dial_count; ++i) { set_dial(static_cast<Dial>(i), settings.dials[i]); }
}

void Machine::set_dial(Dial dial, double value) {
    dials_[static_cast<size_t>(dial)].store(value);
    if (dial == Dial::lost_after_graphs && !lost()) {
        lost_at_graph_ = value > 0 ? submitted_graphs_ + static_cast<uint64_t>(value) + 1 : 0;
    }
}

Instant Machine::transfer(Instant ready, size_t bytes, Direction direction, Asker asker) {
    const bool down = direction == Direction::to_device;
    (down ? h2d_bytes_ : d2h_bytes_) += bytes;
    ++(down ? h2d_transfers_ : d2h_transfers_);
    const double gbps = dial(Dial::link_gbps);
    if (gbps <= 0) { return ready; }
    const Span busy = from_seconds(dial(Dial::link_latency_us) * 1e-6 + seconds_to_move(bytes, gbps));
    link_busy_ns_ += nanoseconds(busy);
    const Timeline::Service service = link_.reserve(ready, busy);
    (asker == Asker::queue ? queue_link_wait_ns_ : caller_link_wait_ns_) += nanoseconds(service.begin - ready);
    return service.end;
}

Instant Machine::device_work(Instant ready, uint64_t launches, size_t bytes) {
    ++graphs_;
    launches_ += launches;
    device_bytes_ += bytes;
    const double launch_seconds = static_cast<double>(launches) * dial(Dial::launch_us) * 1e-6;
    const Span busy = from_seconds(launch_seconds + seconds_to_move(bytes, dial(Dial::device_gbps)));
    if (busy <= Span::zero()) { return ready; }
    device_busy_ns_ += nanoseconds(busy);
    return device_.reserve(ready, busy).end;
}

Instant Machine::host_work(Instant ready, size_t expert_bytes) {
    host_expert_bytes_ += expert_bytes;
    const Span busy = from_seconds(seconds_to_move(expert_bytes, dial(Dial::host_gbps)));
    if (busy <= Span::zero()) { return ready; }
    host_busy_ns_ += nanoseconds(busy);
    return host_.reserve(ready, busy).end;
}

Instant Machine::finish_device_work(Instant modelled_end) {
    const bool throttled = dial(Dial::device_gbps) > 0 || dial(Dial::launch_us) > 0;
    return finish(modelled_end, throttled, device_late_ns_);
}

Instant Machine::finish_host_work(Instant modelled_end) {
    return finish(modelled_end, dial(Dial::host_gbps) > 0, host_late_ns_);
}

void Machine::hold_until(Instant deadline) {
    const Instant began = Clock::now();
    if (began >= deadline) { return; }
    wait_until(deadline);
    held_ns_ += nanoseconds(Clock::now() - began);
}

bool Machine::admit_graph() {
    const uint64_t number = ++submitted_graphs_;
    const uint64_t lost_at = lost_at_graph_;
    if (lost_at != 0 && number >= lost_at) { lost_ = true; }
    const auto every = static_cast<uint64_t>(dial(Dial::fail_graph_every));
    if (!lost() && (every == 0 || number % every != 0)) { return true; }
    ++failed_graphs_;
    return false;
}

bool Machine::claim_vram(size_t bytes) {
    const auto every = static_cast<uint64_t>(dial(Dial::refuse_alloc_every));
    const uint64_t number = ++allocations_;
    const bool refused = every != 0 && number % every == 0;
    uint64_t used = vram_used_bytes_.load();
    do {
        if (refused || bytes > free_vram_bytes(used)) {
            ++refused_allocations_;
            return false;
        }
    } while (!vram_used_bytes_.compare_exchange_weak(used, used + bytes));
    uint64_t peak = vram_peak_bytes_.load();
    while (peak < used + bytes && !vram_peak_bytes_.compare_exchange_weak(peak, used + bytes)) {}
    return true;
}

void Machine::release_vram(size_t bytes) { vram_used_bytes_ -= bytes; }

size_t Machine::free_vram_bytes(uint64_t used_bytes) const {
    if (lost()) { return 0; }
    const size_t taken = used_bytes + (static_cast<size_t>(dial(Dial::vram_stolen_mib)) << 20);
    return taken < settings_.vram_bytes ? settings_.vram_bytes - taken : 0;
}

emu_counter_values Machine::counters() const {
    return {h2d_bytes_,           d2h_bytes_,           h2d_transfers_,       d2h_transfers_, graphs_,
            launches_,            device_bytes_,        host_expert_bytes_,   vram_used_bytes_, vram_peak_bytes_,
            link_busy_ns_,        device_busy_ns_,      host_busy_ns_,        device_late_ns_, host_late_ns_,
            held_ns_,             queue_link_wait_ns_,  caller_link_wait_ns_, refused_allocations_, failed_graphs_};
}

}  // namespace emu
