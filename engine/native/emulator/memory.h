// The accelerator's own memory: a fixed number of bytes that the host cannot address.
#pragma once

#include "../ggml_abi.h"

namespace emu {

class Accelerator;

// `device` is the accelerator's ggml device. Allocations beyond the machine's memory return null, as on a full card.
ggml_backend_buffer_type make_vram_type(ggml_backend_dev_t device, Accelerator & accelerator);

}  // namespace emu
