// The ggml backend of one llama context: takes the scheduler's splits and has them computed.
#pragma once

#include "ggml_abi.h"

namespace hotcache {

class Engine;

// Returns null, with a message in ggml's log, when a backend it delegates to cannot be had.
ggml_backend_t make_backend(Engine & engine, ggml_backend_dev_t device, bool on_device_path);

void set_n_threads(ggml_backend_t backend, int n_threads);
void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data);

}  // namespace hotcache
