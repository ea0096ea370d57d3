// The accelerator's own memory, a fixed number of bytes that the host cannot address, and host memory pinned for it.
#pragma once

#include <cstdint>

#include "../ggml_abi.h"

namespace emu {

class Accelerator;

// Fresh memory is full of NaNs: whoever reads what nobody wrote shall notice.
constexpr uint8_t poison = 0xFF;

// `device` is the accelerator's ggml device. Allocations beyond the machine's memory return null, as on a full card.
ggml_backend_buffer_type make_vram_type(ggml_backend_dev_t device, Accelerator & accelerator);

// Host memory that the CPU backend computes in, too.
ggml_backend_buffer_type make_pinned_type(ggml_backend_dev_t device);

// Also true of a copy of the type under another address, as with CUDA's types.
bool is_vram_of(ggml_backend_buffer_type_t type, ggml_backend_dev_t device);
bool is_pinned(ggml_backend_buffer_type_t type);

// The buffer that holds a tensor's data; null before it has any.
inline ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

}  // namespace emu
