// EMUHOST: an ACCEL-type ggml device on plain host memory, whose expert products run no faster than the emulated
// machine's host memory allows. llama.cpp schedules single expert products on it; whoever asks for it by name may give
// it any graph on host memory.
#pragma once

#include <deque>
#include <mutex>
#include <string>

#include "../ggml_abi.h"
#include "machine.h"

namespace emu {

class SlowHost {
public:
    static constexpr const char * name = "EMUHOST";

    SlowHost(Machine & machine, ggml_backend_reg_t reg);
    SlowHost(const SlowHost &) = delete;
    SlowHost & operator=(const SlowHost &) = delete;

    Machine & machine() { return machine_; }
    ggml_backend_dev_t device() { return &device_; }

    // Names the throttle as it is now. What was returned before stays valid.
    const char * description();

private:
    Machine & machine_;
    ggml_backend_device device_;
    std::mutex mutex_;  // guards what follows
    std::deque<std::string> descriptions_;
};

// Sets the threads of a slow host's backend; any other backend keeps its own.
void set_slow_host_threads(ggml_backend_t backend, int threads);

}  // namespace emu
