// Owners for ggml's C handles.
#pragma once

#include <memory>

#include "ggml_abi.h"

namespace hotcache {

struct ContextFree {
    void operator()(ggml_context * c) const { ggml_free(c); }
};
struct BufferFree {
    void operator()(ggml_backend_buffer_t b) const { ggml_backend_buffer_free(b); }
};
struct BackendFree {
    void operator()(ggml_backend_t b) const { ggml_backend_free(b); }
};

using ContextPtr = std::unique_ptr<ggml_context, ContextFree>;
using BufferPtr = std::unique_ptr<ggml_backend_buffer, BufferFree>;
using BackendPtr = std::unique_ptr<ggml_backend, BackendFree>;

inline ContextPtr make_context(size_t n_tensors, size_t graph_nodes = 0) {
    ggml_init_params params{};
    params.mem_size = n_tensors * ggml_tensor_overhead() +
                      (graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, false) : 0) + 256;
    params.no_alloc = true;
    return ContextPtr(ggml_init(params));
}

}  // namespace hotcache
