// Reads and writes through a buffer are synchronous and, like CUDA's, do NOT wait for work queued on any backend:
// whoever shares a tensor with a queue synchronises first. Freeing does wait, as cudaFree does.
#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "accelerator.h"
#include "cpu_backend.h"
#include "link.h"

namespace emu {

namespace {

constexpr size_t alignment_bytes = 128;

struct FreeBytes {
    void operator()(char * bytes) const { std::free(bytes); }
};

size_t rounded_up(size_t bytes) { return (bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes; }

class Allocation {
public:
    // Throws std::bad_alloc when the computer itself has no such memory.
    Allocation(Accelerator & accelerator, size_t bytes)
        : accelerator_(accelerator),
          bytes_(bytes),
          data_(static_cast<char *>(std::aligned_alloc(alignment_bytes, bytes))) {
        if (data_ == nullptr) { throw std::bad_alloc(); }
        std::memset(data_.get(), poison, bytes);
    }

    ~Allocation() { accelerator_.machine().release_vram(bytes_); }
    Allocation(const Allocation &) = delete;
    Allocation & operator=(const Allocation &) = delete;

    Accelerator & accelerator() { return accelerator_; }
    char * data() { return data_.get(); }

private:
    Accelerator & accelerator_;
    size_t bytes_;
    std::unique_ptr<char, FreeBytes> data_;
};

Allocation & allocation(ggml_backend_buffer_t buffer) { return *static_cast<Allocation *>(buffer->context); }

Machine & machine(ggml_backend_buffer_t buffer) { return allocation(buffer).accelerator().machine(); }

char * at(const ggml_tensor * tensor, size_t offset) { return static_cast<char *>(tensor->data) + offset; }

void free_buffer(ggml_backend_buffer_t buffer) {
    allocation(buffer).accelerator().drain();
    delete &allocation(buffer);
}

void * get_base(ggml_backend_buffer_t buffer) { return allocation(buffer).data(); }

void memset_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size_bytes) {
    std::memset(at(tensor, offset), value, size_bytes);
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * src, size_t offset,
                size_t size_bytes) {
    carry_now(machine(buffer), {at(tensor, offset), src, size_bytes, Direction::to_device});
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * dst, size_t offset,
                size_t size_bytes) {
    carry_now(machine(buffer), {dst, at(tensor, offset), size_bytes, Direction::to_host});
}

// Within one accelerator only; for anything else ggml falls back on set_tensor and get_tensor.
bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    if (!is_vram_of(buffer_of(src)->buft, buffer->buft->device)) { return false; }
    Machine & shared = machine(buffer);
    shared.hold_until(duplicate(shared, Clock::now(), {dst->data, src->data, ggml_nbytes(src)}));
    return true;
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    std::memset(allocation(buffer).data(), value, buffer->size);
}

ggml_backend_buffer_i buffer_interface() {
    ggml_backend_buffer_i calls{};
    calls.free_buffer = free_buffer;
    calls.get_base = get_base;
    calls.memset_tensor = memset_tensor;
    calls.set_tensor = set_tensor;
    calls.get_tensor = get_tensor;
    calls.cpy_tensor = cpy_tensor;
    calls.clear = clear;
    return calls;
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size_bytes) {
    auto & accelerator = *static_cast<Accelerator *>(type->context);
    const size_t claimed_bytes = rounded_up(size_bytes);
    if (!accelerator.machine().claim_vram(claimed_bytes)) { return nullptr; }
    std::unique_ptr<Allocation> allocation;
    try {
        allocation = std::make_unique<Allocation>(accelerator, claimed_bytes);
    } catch (const std::bad_alloc &) {
        accelerator.machine().release_vram(claimed_bytes);
        return nullptr;
    }
    return ggml_backend_buffer_init(type, buffer_interface(), allocation.release(), size_bytes);
}

const char * get_vram_name(ggml_backend_buffer_type_t type) {
    return static_cast<Accelerator *>(type->context)->name();
}

size_t get_alignment(ggml_backend_buffer_type_t) { return alignment_bytes; }

bool is_not_host(ggml_backend_buffer_type_t) { return false; }

// ---- pinned host memory: the CPU's under another name, since the modelled link does not tell them apart

ggml_backend_buffer_type_t cpu_type() { return ggml_backend_dev_buffer_type(cpu_device()); }

const char * get_pinned_name(ggml_backend_buffer_type_t) { return "EMU_Host"; }

ggml_backend_buffer_t alloc_pinned(ggml_backend_buffer_type_t type, size_t size_bytes) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(cpu_type(), size_bytes);
    if (buffer != nullptr) { buffer->buft = type; }
    return buffer;
}

size_t get_pinned_alignment(ggml_backend_buffer_type_t) { return ggml_backend_buft_get_alignment(cpu_type()); }

bool is_host(ggml_backend_buffer_type_t) { return true; }

}  // namespace

ggml_backend_buffer_type make_vram_type(ggml_backend_dev_t device, Accelerator & accelerator) {
    ggml_backend_buffer_type type{};
    type.iface.get_name = get_vram_name;
    type.iface.alloc_buffer = alloc_buffer;
    type.iface.get_alignment = get_alignment;
    type.iface.is_host = is_not_host;
    type.device = device;
    type.context = &accelerator;
    return type;
}

ggml_backend_buffer_type make_pinned_type(ggml_backend_dev_t device) {
    ggml_backend_buffer_type type{};
    type.iface.get_name = get_pinned_name;
    type.iface.alloc_buffer = alloc_pinned;
    type.iface.get_alignment = get_pinned_alignment;
    type.iface.is_host = is_host;
    type.device = device;
    return type;
}

bool is_vram_of(ggml_backend_buffer_type_t type, ggml_backend_dev_t device) {
    return type->iface.get_name == get_vram_name && type->device == device;
}

bool is_pinned(ggml_backend_buffer_type_t type) { return type->iface.get_name == get_pinned_name; }

}  // namespace emu
