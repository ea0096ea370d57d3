#include "cpu_backend.h"

#include <stdexcept>

namespace emu {

ggml_backend_dev_t cpu_device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

CpuBackend::CpuBackend(int threads) : backend_(ggml_backend_dev_init(cpu_device(), nullptr)) {
    if (backend_ == nullptr) { throw std::runtime_error("ggml has no CPU backend to compute on"); }
    set_threads(threads);
}

void CpuBackend::set_threads(int threads) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get()));
    void * address = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    if (address != nullptr) { reinterpret_cast<ggml_backend_set_n_threads_t>(address)(backend_.get(), threads); }
}

}  // namespace emu
