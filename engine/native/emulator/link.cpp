#include "link.h"

#include <cstring>

#include "memory.h"

namespace emu {

namespace {

// A cautious guess at what this computer's memory does, to begin a large copy early enough to end on time.
constexpr double real_copy_gbps = 3;

}  // namespace

Instant carry(Machine & machine, Instant ready, const Transfer & transfer, Asker asker) {
    if (machine.lost()) {
        // What was never read must not look like an old answer.
        if (transfer.direction == Direction::to_host) { std::memset(transfer.to, poison, transfer.bytes); }
        return ready;
    }
    const Instant end = machine.transfer(ready, transfer.bytes, transfer.direction, asker);
    doze_until(end - run_ahead - from_seconds(static_cast<double>(transfer.bytes) / (real_copy_gbps * 1e9)));
    std::memcpy(transfer.to, transfer.from, transfer.bytes);
    return std::max(end, Clock::now());
}

void carry_now(Machine & machine, const Transfer & transfer) {
    machine.hold_until(carry(machine, Clock::now(), transfer, Asker::caller));
}

Instant duplicate(Machine & machine, Instant ready, const Copy & copy) {
    if (machine.lost()) { return ready; }
    std::memcpy(copy.to, copy.from, copy.bytes);
    return machine.finish_device_work(machine.device_work(ready, 1, 2 * copy.bytes));
}

}  // namespace emu
