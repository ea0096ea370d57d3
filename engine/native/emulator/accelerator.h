// EMU0, EMU1 and so on: GPU-type ggml devices. Its arithmetic is the CPU backend's, on a real core of this computer: work on it and on
// the host overlap only where there are cores for both, and where the arithmetic takes longer than the modelled machine
// would, the counters report it as late.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../ggml_abi.h"
#include "machine.h"
#include "stream.h"

namespace emu {

class Accelerator {
public:
    Accelerator(int index, Machine & machine, ggml_backend_reg_t reg);
    Accelerator(const Accelerator &) = delete;
    Accelerator & operator=(const Accelerator &) = delete;

    const char * name() const { return name_.c_str(); }
    Machine & machine() { return machine_; }
    ggml_backend_dev_t device() { return &device_; }
    ggml_backend_buffer_type_t vram_type() { return &vram_type_; }
    ggml_backend_buffer_type_t pinned_type() { return &pinned_type_; }

    // Names the throttles as they are now. What was returned before stays valid.
    const char * description();

    // Waits for everything that any stream still has to do.
    void drain();

    void add(Stream & stream);
    void remove(Stream & stream);

private:
    const std::string name_;
    Machine & machine_;
    ggml_backend_device device_;
    ggml_backend_buffer_type vram_type_;
    ggml_backend_buffer_type pinned_type_;
    std::mutex mutex_;  // guards what follows
    std::vector<Stream *> streams_;
    std::deque<std::string> descriptions_;
};

}  // namespace emu
