#include "device.h"

#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "backend.h"
#include "engine.h"
#include "routed_ffn.h"

namespace hotcache {

namespace {

ggml_backend_dev_t cpu_device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

// This device as the scheduler of a context sees it whose splits stay in the fast device's memory. Tensors are given that
// memory under a type of its own: told apart from the fast device's, they are announced to this backend by a copy, which
// shows it the scheduler's own backend of the fast device; and the fast device still takes them for its own.
struct Resident {
    ggml_backend_dev_t fast = nullptr;
    ggml_backend_buffer_type buffer_type{};
    ggml_backend_device device{};
    ggml_backend_buffer_i buffer_interface{};  // the fast device's own
};

// ggml's tables hold plain function pointers, so what they share is reached from one registration.
struct Registration {
    Engine engine;
    ggml_backend_buffer_type buffer_type{};
    ggml_backend_device device{};
    ggml_backend_reg reg{};
    std::map<ggml_backend_dev_t, Resident> residents;
    // A buffer of ours is the CPU's under another type; its own way to be freed is called last.
    std::mutex mutex;
    std::unordered_map<ggml_backend_buffer_t, void (*)(ggml_backend_buffer_t)> free_functions;
};

Registration & registration();

// Expert weights stay plain host memory in ggml's own layout. The type of their own is what makes the scheduler hand
// their products to this backend.
void buffer_free(ggml_backend_buffer_t buffer) {
    Registration & r = registration();
    r.engine.forget_buffer(buffer);
    void (*free_memory)(ggml_backend_buffer_t) = nullptr;
    {
        const std::lock_guard<std::mutex> lock(r.mutex);
        const auto found = r.free_functions.find(buffer);
        free_memory = found->second;
        r.free_functions.erase(found);
    }
    if (free_memory != nullptr) { free_memory(buffer); }
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    registration().engine.note_weight(buffer, tensor);
    return GGML_STATUS_SUCCESS;
}

ggml_backend_buffer_t adopt(ggml_backend_buffer_t buffer) {
    if (buffer == nullptr) { return nullptr; }
    Registration & r = registration();
    const std::lock_guard<std::mutex> lock(r.mutex);
    r.free_functions[buffer] = buffer->iface.free_buffer;
    buffer->iface.free_buffer = buffer_free;
    buffer->iface.init_tensor = buffer_init_tensor;
    buffer->buft = &r.buffer_type;
    return buffer;
}

const char * buft_name(ggml_backend_buffer_type_t) { return own_device_name; }
// Memory the fast device can copy from directly, where it offers such: promotions come from here.
ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t, size_t size_bytes) {
    ggml_backend_dev_t fast = Engine::fast_device(*registration().engine.settings());
    ggml_backend_buffer_type_t pinned = fast == nullptr ? nullptr : ggml_backend_dev_host_buffer_type(fast);
    if (pinned != nullptr && size_bytes > 0 && ggml_backend_buft_is_host(pinned)) {
        if (ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(pinned, size_bytes)) { return adopt(buffer); }
    }
    return adopt(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(cpu_device()), size_bytes));
}
size_t buft_alignment(ggml_backend_buffer_type_t) {
    return ggml_backend_buft_get_alignment(ggml_backend_dev_buffer_type(cpu_device()));
}
bool buft_is_host(ggml_backend_buffer_type_t) { return true; }

bool holds_experts(const ggml_tensor * weight) {
    return weight != nullptr && weight->buffer != nullptr && weight->buffer->buft == &registration().buffer_type;
}

// While a model loads, llama.cpp asks with a weight in an empty buffer whether this buffer type would do for it.
bool asked_at_load(const ggml_tensor * weight) { return holds_experts(weight) && weight->buffer->size == 0; }

// The device that computes what stands around the expert products.
ggml_backend_dev_t computing_device(ggml_backend_dev_t device) {
    return device->context == nullptr ? cpu_device() : static_cast<Resident *>(device->context)->fast;
}

// Whether a product with expert weights, or a bias by expert, of a batch of `n_tokens` runs here.
bool takes(ggml_backend_dev_t device, const ggml_tensor * weight, int64_t n_tokens) {
    if (!holds_experts(weight)) { return false; }
    const Engine & engine = registration().engine;
    return asked_at_load(weight) ? engine.holds_weights() : engine.wants(n_tokens, device->context != nullptr, weight->buffer);
}

// True when `tensor` is computed from an expert product that runs here by operations on its rows.
bool rooted(ggml_backend_dev_t device, const ggml_tensor * tensor) {
    constexpr int longest_chain = 24;
    for (int depth = 0; tensor != nullptr && depth < longest_chain; ++depth) {
        switch (tensor->op) {
            case GGML_OP_MUL_MAT_ID:
                return takes(device, tensor->src[0], tensor->ne[2]);
            case GGML_OP_ADD_ID:
            case GGML_OP_MUL:
            case GGML_OP_ADD:
            case GGML_OP_VIEW:
                break;
            default:
                if (!is_pair_op(tensor)) { return false; }
        }
        tensor = tensor->src[0];
    }
    return false;
}

// The tail llama.cpp builds: each expert's rows are views of one tensor, added up in order.
bool sums_experts(ggml_backend_dev_t device, const ggml_tensor * add) {
    return add->src[1]->op == GGML_OP_VIEW && rooted(device, add->src[0]) && rooted(device, add->src[1]);
}

bool device_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    if (op->src[0] != nullptr && asked_at_load(op->src[0])) { registration().engine.note_question(op->src[0]); }
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        case GGML_OP_MUL_MAT_ID:
            return takes(device, op->src[0], op->ne[2]) && ggml_backend_dev_supports_op(cpu_device(), op);
        case GGML_OP_ADD_ID:
            return takes(device, op->src[1], op->ne[2]) && ggml_backend_dev_supports_op(cpu_device(), op);
        case GGML_OP_MUL:
            return rooted(device, op->src[0]) && ggml_backend_dev_supports_op(computing_device(device), op);
        case GGML_OP_ADD:
            return sums_experts(device, op) && ggml_backend_dev_supports_op(computing_device(device), op);
        default:
            return is_pair_op(op) && rooted(device, op->src[0]) &&
                   ggml_backend_dev_supports_op(cpu_device(), op) &&
                   ggml_backend_dev_supports_op(computing_device(device), op);
    }
}

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) {
    if (device->context == nullptr) { return ggml_backend_buft_is_host(buft); }
    return buft == &registration().buffer_type || buft == &static_cast<Resident *>(device->context)->buffer_type;
}

const char * device_name(ggml_backend_dev_t) { return own_device_name; }
const char * device_description(ggml_backend_dev_t) { return "hot-expert cache"; }
void device_memory(ggml_backend_dev_t, size_t * free_bytes, size_t * total_bytes) {
    *free_bytes = 0;
    *total_bytes = 0;
}
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }
void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props = {};
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    props->caps.buffer_from_host_ptr = true;
}
Resident & resident_of(ggml_backend_buffer_t buffer) {
    Registration & r = registration();
    const std::lock_guard<std::mutex> lock(r.mutex);
    return r.residents.at(buffer->buft->device);
}

ggml_status resident_init(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    registration().engine.note_allocation();
    const auto init = resident_of(buffer).buffer_interface.init_tensor;
    return init == nullptr ? GGML_STATUS_SUCCESS : init(buffer, tensor);
}
// Access from outside any stream waits for what this backend has left unfinished on one.
void resident_memset(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size_bytes) {
    registration().engine.settle();
    resident_of(buffer).buffer_interface.memset_tensor(buffer, tensor, value, offset, size_bytes);
}
void resident_set(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * src, size_t offset, size_t size_bytes) {
    registration().engine.settle();
    resident_of(buffer).buffer_interface.set_tensor(buffer, tensor, src, offset, size_bytes);
}
void resident_get(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * dst, size_t offset, size_t size_bytes) {
    registration().engine.settle();
    resident_of(buffer).buffer_interface.get_tensor(buffer, tensor, dst, offset, size_bytes);
}
bool resident_copy(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    registration().engine.settle();
    return resident_of(buffer).buffer_interface.cpy_tensor(buffer, src, dst);
}

ggml_backend_buffer_t resident_alloc(ggml_backend_buffer_type_t buft, size_t size_bytes) {
    ggml_backend_buffer_type_t genuine = ggml_backend_dev_buffer_type(buft->device);
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(genuine, size_bytes);
    if (buffer == nullptr) {
        registration().engine.make_room(size_bytes);
        buffer = ggml_backend_buft_alloc_buffer(genuine, size_bytes);
    }
    if (buffer == nullptr) { return nullptr; }
    {
        const std::lock_guard<std::mutex> lock(registration().mutex);
        Resident & resident = registration().residents.at(buft->device);
        if (resident.buffer_interface.get_tensor == nullptr) { resident.buffer_interface = buffer->iface; }
    }
    if (buffer->iface.memset_tensor != nullptr) { buffer->iface.memset_tensor = resident_memset; }
    if (buffer->iface.cpy_tensor != nullptr) { buffer->iface.cpy_tensor = resident_copy; }
    buffer->iface.init_tensor = resident_init;
    buffer->iface.set_tensor = resident_set;
    buffer->iface.get_tensor = resident_get;
    return buffer;
}

ggml_backend_dev_t resident_device(ggml_backend_dev_t fast) {
    Registration & r = registration();
    const std::lock_guard<std::mutex> lock(r.mutex);
    Resident & resident = r.residents[fast];
    if (resident.fast == nullptr) {
        resident.fast = fast;
        // All but the address is as the fast device's own type has it: that is how it recognises its memory.
        resident.buffer_type = *ggml_backend_dev_buffer_type(fast);
        resident.buffer_type.iface.alloc_buffer = resident_alloc;
        resident.device = r.device;
        resident.device.context = &resident;
    }
    return &resident.device;
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    Engine & engine = registration().engine;
    ggml_backend_dev_t fast = engine.device_path_for_new_context() ? Engine::fast_device(*engine.settings()) : nullptr;
    return make_backend(engine, fast != nullptr ? resident_device(fast) : device, fast != nullptr);
}
ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) {
    return device->context == nullptr ? &registration().buffer_type
                                      : &static_cast<Resident *>(device->context)->buffer_type;
}
ggml_backend_buffer_t device_buffer_from_host(ggml_backend_dev_t, void * memory, size_t size_bytes, size_t max_tensor) {
    return adopt(ggml_backend_dev_buffer_from_host_ptr(cpu_device(), memory, size_bytes, max_tensor));
}

const char * reg_name(ggml_backend_reg_t) { return own_device_name; }
size_t reg_device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) { return &registration().device; }
void * reg_proc_address(ggml_backend_reg_t, const char * name) {
    const std::string wanted = name;
    if (wanted == "ggml_backend_set_n_threads") { return reinterpret_cast<void *>(&set_n_threads); }
    if (wanted == "ggml_backend_set_abort_callback") { return reinterpret_cast<void *>(&set_abort_callback); }
    return nullptr;
}

Registration & registration() {
    // Never destroyed: the host may free models and contexts after this library's own destructors have run.
    static Registration & r = *new Registration();
    static const bool filled = [] {
        r.buffer_type.iface.get_name = buft_name;
        r.buffer_type.iface.alloc_buffer = buft_alloc;
        r.buffer_type.iface.get_alignment = buft_alignment;
        r.buffer_type.iface.is_host = buft_is_host;
        r.buffer_type.device = &r.device;
        r.device.iface.get_name = device_name;
        r.device.iface.get_description = device_description;
        r.device.iface.get_memory = device_memory;
        r.device.iface.get_type = device_type;
        r.device.iface.get_props = device_props;
        r.device.iface.init_backend = device_init;
        r.device.iface.get_buffer_type = device_buffer_type;
        r.device.iface.buffer_from_host_ptr = device_buffer_from_host;
        r.device.iface.supports_op = device_supports_op;
        r.device.iface.supports_buft = device_supports_buft;
        r.device.reg = &r.reg;
        r.reg.api_version = ggml_abi::api_version;
        r.reg.iface.get_name = reg_name;
        r.reg.iface.get_device_count = reg_device_count;
        r.reg.iface.get_device = reg_device;
        r.reg.iface.get_proc_address = reg_proc_address;
        return true;
    }();
    static_cast<void>(filled);
    return r;
}

bool usable() {
    static const bool ok = [] {
        const std::string mismatch = ggml_abi::mismatch("hotcache");
        if (!mismatch.empty()) { ggml_log_internal(GGML_LOG_LEVEL_ERROR, "%s\n", mismatch.c_str()); }
        return mismatch.empty();
    }();
    return ok;
}

}  // namespace

ggml_backend_reg_t registry() { return usable() ? &registration().reg : nullptr; }

ggml_backend_buffer_type_t expert_buffer_type() { return &registration().buffer_type; }

bool is_resident(const ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    return buffer != nullptr && buffer->iface.init_tensor == resident_init;
}

Engine * engine() { return usable() ? &registration().engine : nullptr; }

}  // namespace hotcache
