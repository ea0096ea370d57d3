#include "slow_host.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <sstream>

#include "cpu_backend.h"
#include "memory.h"
#include "traffic.h"

namespace emu {

namespace {

constexpr int initial_threads = 1;  // until llama.cpp, or whoever owns the backend, sets its own number

SlowHost & slow_host(ggml_backend_dev_t device) { return *static_cast<SlowHost *>(device->context); }

// ---- the backend: the CPU's, synchronous, held back

struct Backend {
    Machine & machine;
    CpuBackend cpu;
};

const char * backend_name(ggml_backend_t) { return SlowHost::name; }

void free_backend(ggml_backend_t backend) {
    delete static_cast<Backend *>(backend->context);
    delete backend;
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    auto & [machine, cpu] = *static_cast<Backend *>(backend->context);
    const Instant began = Clock::now();
    Traffic traffic{};
    const ggml_status status = compute_counting(cpu, *graph, traffic);
    if (traffic.expert_bytes > 0) {
        machine.hold_until(machine.finish_host_work(machine.host_work(began, traffic.expert_bytes)));
    }
    return status;
}

ggml_guid_t slow_host_guid() {
    static ggml_guid guid = {0x6d, 0x6f, 0x65, 0x74, 0x75, 0x6e, 0x65, 0x2d,
                             0x65, 0x6d, 0x75, 0x2d, 0x68, 0x6f, 0x73, 0x74};
    return &guid;
}

ggml_backend_i backend_interface() {
    ggml_backend_i calls{};
    calls.get_name = backend_name;
    calls.free = free_backend;
    calls.graph_compute = graph_compute;
    return calls;
}

// ---- the device

const char * device_name(ggml_backend_dev_t) { return SlowHost::name; }

const char * device_description(ggml_backend_dev_t device) { return slow_host(device).description(); }

// Host memory is the CPU device's to report.
void device_memory(ggml_backend_dev_t, size_t * free_bytes, size_t * total_bytes) { *free_bytes = *total_bytes = 0; }

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props = {};
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    props->caps.buffer_from_host_ptr = true;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    try {
        std::unique_ptr<Backend> context(new Backend{slow_host(device).machine(), CpuBackend(initial_threads)});
        return new ggml_backend{slow_host_guid(), backend_interface(), device, context.release()};
    } catch (const std::exception & error) {
        std::fprintf(stderr, "emulated slow host: cannot start: %s\n", error.what());
        return nullptr;
    }
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t) { return ggml_backend_dev_buffer_type(cpu_device()); }

ggml_backend_buffer_t buffer_from_host_ptr(ggml_backend_dev_t, void * ptr, size_t size_bytes, size_t max_tensor_bytes) {
    return ggml_backend_dev_buffer_from_host_ptr(cpu_device(), ptr, size_bytes, max_tensor_bytes);
}

// The CPU's own memory, repacked or not, and what is pinned for the accelerator. Taking every host buffer would take the
// weights of other devices that keep theirs in host memory.
bool is_plain_host(ggml_backend_buffer_type_t type) {
    return is_pinned(type) || std::strncmp(ggml_backend_buft_name(type), "CPU", 3) == 0;
}

bool holds_experts_on_host(const ggml_tensor * weight) {
    return weight->buffer != nullptr && is_plain_host(ggml_backend_buffer_get_type(weight->buffer));
}

// An activation between two expert products. A CPU without emulation computes it in the same split as they; left out
// here, each layer would pay for splits that a real machine does not have.
bool follows_expert_product(ggml_backend_dev_t device, const ggml_tensor * op) {
    const ggml_tensor * from = op->src[0];
    while (from != nullptr && (from->op == GGML_OP_VIEW || from->op == GGML_OP_ADD_ID || from->op == GGML_OP_CLAMP ||
                               from->op == GGML_OP_UNARY || from->op == GGML_OP_SCALE)) {
        from = from->src[0];
    }
    return from != nullptr && from->op == GGML_OP_MUL_MAT_ID && holds_experts_on_host(from->src[0]) &&
           from->ne[2] < slow_host(device).machine().settings().offload_batch_tokens &&
           ggml_backend_dev_supports_op(cpu_device(), op);
}

// Large batches are left to the CPU: llama.cpp streams weights to an accelerator only from there, by its offload_op.
bool supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return true;
        case GGML_OP_MUL_MAT_ID:
            return op->ne[2] < slow_host(device).machine().settings().offload_batch_tokens &&
                   ggml_backend_dev_supports_op(cpu_device(), op);
        case GGML_OP_GLU:
        case GGML_OP_UNARY:
        case GGML_OP_SQR:
        case GGML_OP_CLAMP:
        case GGML_OP_SCALE:
        case GGML_OP_ADD_ID: return follows_expert_product(device, op);
        default: return false;
    }
}

// The scheduler gives an operation to the first backend that takes its weights' buffer type.
bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return is_plain_host(type); }

ggml_backend_device_i device_interface() {
    ggml_backend_device_i calls{};
    calls.get_name = device_name;
    calls.get_description = device_description;
    calls.get_memory = device_memory;
    calls.get_type = device_type;
    calls.get_props = device_props;
    calls.init_backend = init_backend;
    calls.get_buffer_type = device_buffer_type;
    calls.buffer_from_host_ptr = buffer_from_host_ptr;
    calls.supports_op = supports_op;
    calls.supports_buft = supports_buft;
    return calls;
}

std::string describe(const Machine & machine) {
    const double gbps = machine.dial(Dial::host_gbps);
    if (gbps <= 0) { return "emulated slow host (unthrottled)"; }
    std::ostringstream text;
    text.precision(4);
    text << "emulated slow host (" << gbps << " GB/s for expert products)";
    return text.str();
}

}  // namespace

SlowHost::SlowHost(Machine & machine, ggml_backend_reg_t reg)
    : machine_(machine), device_{device_interface(), reg, this} {}

const char * SlowHost::description() {
    std::string now = describe(machine_);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto known = std::find(descriptions_.begin(), descriptions_.end(), now);
    if (known == descriptions_.end()) { known = descriptions_.insert(descriptions_.end(), std::move(now)); }
    return known->c_str();
}

void set_slow_host_threads(ggml_backend_t backend, int threads) {
    if (ggml_guid_matches(ggml_backend_guid(backend), slow_host_guid())) {
        static_cast<Backend *>(backend->context)->cpu.set_threads(threads);
    }
}

}  // namespace emu
