#include "accelerator.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <sstream>

#include "cpu_backend.h"
#include "memory.h"

namespace emu {

namespace {

Accelerator & accelerator(ggml_backend_dev_t device) { return *static_cast<Accelerator *>(device->context); }

// ---- the backend: one stream

struct Backend {
    explicit Backend(Accelerator & owner) : accelerator(owner), stream(owner.machine()) { accelerator.add(stream); }
    ~Backend() {
        stream.synchronize();
        accelerator.remove(stream);
    }
    Backend(const Backend &) = delete;
    Backend & operator=(const Backend &) = delete;

    Accelerator & accelerator;
    Stream stream;
};

Stream & stream(ggml_backend_t backend) { return static_cast<Backend *>(backend->context)->stream; }

Event & state(ggml_backend_event_t event) { return *static_cast<Event *>(event->context); }

ggml_guid_t accelerator_guid() {
    static ggml_guid guid = {0x6d, 0x6f, 0x65, 0x74, 0x75, 0x6e, 0x65, 0x2d,
                             0x65, 0x6d, 0x75, 0x2d, 0x64, 0x65, 0x76, 0x30};
    return &guid;
}

const char * backend_name(ggml_backend_t backend) { return accelerator(backend->device).name(); }

void free_backend(ggml_backend_t backend) {
    delete static_cast<Backend *>(backend->context);
    delete backend;
}

// CUDA ends the program here when a tensor lies in a copy of its buffer type, or anywhere else.
void require_own_type(ggml_backend_t backend, const ggml_tensor * tensor) {
    GGML_ASSERT(buffer_of(tensor)->buft == accelerator(backend->device).vram_type() && "unsupported buffer type");
}

void set_tensor_async(ggml_backend_t backend, ggml_tensor * tensor, const void * src, size_t offset,
                      size_t size_bytes) {
    require_own_type(backend, tensor);
    char * to = static_cast<char *>(tensor->data) + offset;
    stream(backend).submit(Transfer{to, src, size_bytes, Direction::to_device});
}

void get_tensor_async(ggml_backend_t backend, const ggml_tensor * tensor, void * dst, size_t offset,
                      size_t size_bytes) {
    require_own_type(backend, tensor);
    const char * from = static_cast<const char *>(tensor->data) + offset;
    stream(backend).submit(Transfer{dst, from, size_bytes, Direction::to_host});
}

// On the source's stream; the destination's waits for it. False for what is not between two streams of one device: the
// emulated board has no way from one device to another but through the host.
bool cpy_tensor_async(ggml_backend_t src_backend, ggml_backend_t dst_backend, const ggml_tensor * src,
                      ggml_tensor * dst) {
    const ggml_backend_dev_t device = dst_backend->device;
    if (src_backend->device != device || !is_vram_of(buffer_of(src)->buft, device) ||
        !is_vram_of(buffer_of(dst)->buft, device)) {
        return false;
    }
    stream(src_backend).submit(Copy{dst->data, src->data, ggml_nbytes(dst)});
    if (src_backend != dst_backend) { stream(src_backend).order_before(stream(dst_backend)); }
    return true;
}

void synchronize(ggml_backend_t backend) { stream(backend).synchronize(); }

// A kernel that reads memory which its device cannot address ends the program.
void require_addressable(ggml_backend_dev_t device, const ggml_tensor & tensor, const ggml_tensor & node) {
    const ggml_backend_buffer_t buffer = buffer_of(&tensor);
    if (buffer != nullptr && is_vram_of(buffer->buft, device)) { return; }
    GGML_ABORT("%s: '%s', which '%s' uses, lies in %s", accelerator(device).name(), tensor.name, node.name,
               buffer == nullptr ? "no buffer" : ggml_backend_buffer_name(buffer));
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor & node = *graph->nodes[i];
        if (!computes(node)) { continue; }
        require_addressable(backend->device, node, node);
        for (const ggml_tensor * source : node.src) {
            if (source != nullptr) { require_addressable(backend->device, *source, node); }
        }
    }
    if (!accelerator(backend->device).machine().admit_graph()) { return GGML_STATUS_FAILED; }
    return stream(backend).submit(*graph);
}

void event_record(ggml_backend_t backend, ggml_backend_event_t event) { stream(backend).record(state(event)); }

void event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    if (event->device == backend->device) {
        stream(backend).wait_for(state(event));
    } else {
        ggml_backend_event_synchronize(event);
    }
}

ggml_backend_i backend_interface() {
    ggml_backend_i calls{};
    calls.get_name = backend_name;
    calls.free = free_backend;
    calls.set_tensor_async = set_tensor_async;
    calls.get_tensor_async = get_tensor_async;
    calls.cpy_tensor_async = cpy_tensor_async;
    calls.synchronize = synchronize;
    calls.graph_compute = graph_compute;
    calls.event_record = event_record;
    calls.event_wait = event_wait;
    return calls;
}

// ---- the device

const char * device_name(ggml_backend_dev_t device) { return accelerator(device).name(); }

const char * device_description(ggml_backend_dev_t device) { return accelerator(device).description(); }

void device_memory(ggml_backend_dev_t device, size_t * free_bytes, size_t * total_bytes) {
    const Machine & machine = accelerator(device).machine();
    *free_bytes = machine.free_vram_bytes();
    *total_bytes = machine.settings().vram_bytes;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props = {};
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps.async = true;
    props->caps.events = true;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    try {
        auto context = std::make_unique<Backend>(accelerator(device));
        return new ggml_backend{accelerator_guid(), backend_interface(), device, context.release()};
    } catch (const std::exception & error) {
        std::fprintf(stderr, "emulated accelerator: cannot start: %s\n", error.what());
        return nullptr;
    }
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) { return accelerator(device).vram_type(); }

ggml_backend_buffer_type_t host_buffer_type(ggml_backend_dev_t device) { return accelerator(device).pinned_type(); }

// A CPU-only layout, such as repacked weights, means nothing to another device once it is copied there.
bool has_private_layout(const ggml_tensor * tensor) {
    if (tensor == nullptr || tensor->buffer == nullptr) { return false; }
    const ggml_backend_buffer_type_t type = tensor->buffer->buft;
    return type->device == cpu_device() && !ggml_backend_buft_is_host(type);
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    if (std::any_of(std::begin(op->src), std::end(op->src), has_private_layout)) { return false; }
    return ggml_backend_dev_supports_op(cpu_device(), op);
}

bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return is_vram_of(type, device);
}

// The same rule as CUDA's.
bool offload_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    const int64_t least_tokens = accelerator(device).machine().settings().offload_batch_tokens;
    switch (op->op) {
        case GGML_OP_GET_ROWS: return least_tokens <= 0;
        case GGML_OP_MUL_MAT: return op->ne[1] >= least_tokens;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK: return op->ne[2] >= least_tokens;
        default: return ggml_nrows(op) >= least_tokens;
    }
}

ggml_backend_event_t event_new(ggml_backend_dev_t device) {
    auto context = std::make_unique<Event>();
    return new ggml_backend_event{device, context.release()};
}

void event_free(ggml_backend_dev_t, ggml_backend_event_t event) {
    delete &state(event);
    delete event;
}

void event_synchronize(ggml_backend_dev_t device, ggml_backend_event_t event) {
    if (const auto mark = state(event).last()) { accelerator(device).machine().hold_until(mark->wait()); }
}

ggml_backend_device_i device_interface() {
    ggml_backend_device_i calls{};
    calls.get_name = device_name;
    calls.get_description = device_description;
    calls.get_memory = device_memory;
    calls.get_type = device_type;
    calls.get_props = device_props;
    calls.init_backend = init_backend;
    calls.get_buffer_type = device_buffer_type;
    calls.get_host_buffer_type = host_buffer_type;
    calls.supports_op = supports_op;
    calls.supports_buft = supports_buft;
    calls.offload_op = offload_op;
    calls.event_new = event_new;
    calls.event_free = event_free;
    calls.event_synchronize = event_synchronize;
    return calls;
}

void print_gbps(std::ostream & out, double gbps, const char * what) {
    if (gbps > 0) {
        out << gbps << " GB/s " << what;
    } else {
        out << "unthrottled " << what;
    }
}

std::string describe(const Machine & machine) {
    std::ostringstream text;
    text.precision(4);
    text << "emulated accelerator (";
    print_gbps(text, machine.dial(Dial::device_gbps), "device, ");
    print_gbps(text, machine.dial(Dial::link_gbps), "link, ");
    text << machine.dial(Dial::link_latency_us) << " us transfer, ";
    text << machine.dial(Dial::launch_us) << " us launch";
    // Everything that makes it another machine is in here: the description is part of the machine's fingerprint.
    if (machine.settings().threads != 1) { text << ", " << machine.settings().threads << " threads"; }
    text << ")";
    return text.str();
}

}  // namespace

Accelerator::Accelerator(int index, Machine & machine, ggml_backend_reg_t reg)
    : name_("EMU" + std::to_string(index)),
      machine_(machine),
      device_{device_interface(), reg, this},
      vram_type_(make_vram_type(&device_, *this)),
      pinned_type_(make_pinned_type(&device_)) {}

const char * Accelerator::description() {
    std::string now = describe(machine_);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto known = std::find(descriptions_.begin(), descriptions_.end(), now);
    if (known == descriptions_.end()) { known = descriptions_.insert(descriptions_.end(), std::move(now)); }
    return known->c_str();
}

void Accelerator::drain() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Stream * stream : streams_) { stream->synchronize(); }
}

void Accelerator::add(Stream & stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    streams_.push_back(&stream);
}

void Accelerator::remove(Stream & stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase(std::remove(streams_.begin(), streams_.end(), &stream), streams_.end());
}

}  // namespace emu
