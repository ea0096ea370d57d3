// Bytes on their way, over the emulated link or within the device's memory: real bytes, modelled time.
#pragma once

#include <cstddef>

#include "machine.h"

namespace emu {

struct Transfer {
    void * to;
    const void * from;
    size_t bytes;
    Direction direction;
};

struct Copy {
    void * to;
    const void * from;
    size_t bytes;
};

// How far a thread may run ahead of the modelled clock; it hides the time that sleeping threads need to wake.
constexpr std::chrono::microseconds run_ahead{80};

// Moves the bytes and returns the modelled end of the transfer, which could begin at `ready`. The bytes are read and
// written near that end, not at once, so that a caller who forgets to synchronise is punished as on a real link.
Instant carry(Machine & machine, Instant ready, const Transfer & transfer, Asker asker = Asker::queue);

// The same for a caller who waits for the end.
void carry_now(Machine & machine, const Transfer & transfer);

// Copies within the device's memory, which reads and writes every byte, and returns the modelled end.
Instant duplicate(Machine & machine, Instant ready, const Copy & copy);

}  // namespace emu
