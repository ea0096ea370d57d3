// What a graph reads and writes, which is what the throttles charge for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ggml_abi.h"
#include "cpu_backend.h"

namespace emu {

// False for nodes that only describe memory.
bool computes(const ggml_tensor & node);

struct Traffic {
    uint64_t launches;    // nodes that compute something
    size_t bytes;         // of weights and activations; of an expert product only the experts that were routed to
    size_t expert_bytes;  // the routed experts' share of `bytes`
};

// Computes `graph` and adds what it touched to `traffic`.
//
// Ids are read right before the first product that uses them: ggml reuses an id tensor's memory once its last reader is
// done, so neither before nor after the whole graph would do.
ggml_status compute_counting(CpuBackend & cpu, ggml_cgraph & graph, Traffic & traffic);

}  // namespace emu
