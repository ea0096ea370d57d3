// The ggml device and registry entry of the hot-expert cache.
#pragma once

#include "ggml_abi.h"

namespace hotcache {

class Engine;

// The one registry entry of this process, made on first use. Null, with the reason in ggml's log, when this ggml is not
// the one the engine was built for.
ggml_backend_reg_t registry();

// The engine behind `registry()`; null exactly when that is.
Engine * engine();

// Where expert weights lie: host memory in ggml's own layout, under a type of its own.
ggml_backend_buffer_type_t expert_buffer_type();

// Whether the tensor lies in memory that the plugin gave to a context on the device path.
bool is_resident(const ggml_tensor * tensor);

}  // namespace hotcache
