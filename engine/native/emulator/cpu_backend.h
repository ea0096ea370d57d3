// The real arithmetic: an instance of ggml's CPU backend, found through the registry.
#pragma once

#include <memory>

#include "../ggml_abi.h"

namespace emu {

ggml_backend_dev_t cpu_device();

class CpuBackend {
public:
    // Throws std::runtime_error when ggml has no CPU backend.
    explicit CpuBackend(int threads);

    void set_threads(int threads);
    ggml_status compute(ggml_cgraph & graph) { return ggml_backend_graph_compute(backend_.get(), &graph); }

private:
    struct Free {
        void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    };

    std::unique_ptr<ggml_backend, Free> backend_;
};

}  // namespace emu
