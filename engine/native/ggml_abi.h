// The part of ggml's binary interface that a backend living outside ggml has to fill in.
//
// ggml publishes the functions a backend's *users* call (ggml-backend.h) but not the tables a backend's *author*
// provides. This header states those tables for exactly one ggml version. `ggml_abi::mismatch()` compares that version with
// the library found at run time, and tests/native/test_abi.py compares every size and offset with ggml's own header.
//
// Unused slots are typed `ggml_abi_unused`: present for the layout, never called by this code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ggml-backend.h"
#include "ggml.h"

extern "C" {

using ggml_abi_unused = void (*)();

struct ggml_backend_buffer_type_i {
    const char * (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t size_bytes);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type_t);
};

struct ggml_backend_buffer_type {
    ggml_backend_buffer_type_i iface;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t);
    void * (*get_base)(ggml_backend_buffer_t);
    ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor *);
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor *, uint8_t value, size_t offset, size_t size_bytes);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor *, const void * src, size_t offset, size_t size_bytes);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor *, void * dst, size_t offset, size_t size_bytes);
    ggml_abi_unused set_tensor_2d;
    ggml_abi_unused get_tensor_2d;
    bool (*cpy_tensor)(ggml_backend_buffer_t dst_buffer, const ggml_tensor * src, ggml_tensor * dst);
    void (*clear)(ggml_backend_buffer_t, uint8_t value);
    void (*reset)(ggml_backend_buffer_t);
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i iface;
    ggml_backend_buffer_type_t buft;
    void * context;
    size_t size;
    ggml_backend_buffer_usage usage;
};

// Exported by libggml-base, declared by no installed header.
ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, ggml_backend_buffer_i iface, void * context,
                                               size_t size_bytes);

// Exported by libggml-base: writes to whatever log callback the host program has set.
void ggml_log_internal(ggml_log_level level, const char * format, ...);

struct ggml_backend_i {
    const char * (*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void (*set_tensor_async)(ggml_backend_t, ggml_tensor *, const void * src, size_t offset, size_t size_bytes);
    void (*get_tensor_async)(ggml_backend_t, const ggml_tensor *, void * dst, size_t offset, size_t size_bytes);
    ggml_abi_unused set_tensor_2d_async;
    ggml_abi_unused get_tensor_2d_async;
    bool (*cpy_tensor_async)(ggml_backend_t src_backend, ggml_backend_t dst_backend, const ggml_tensor * src,
                             ggml_tensor * dst);
    void (*synchronize)(ggml_backend_t);
    ggml_abi_unused graph_plan_create;
    ggml_abi_unused graph_plan_free;
    ggml_abi_unused graph_plan_update;
    ggml_abi_unused graph_plan_compute;
    ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph *);
    void (*event_record)(ggml_backend_t, ggml_backend_event_t);
    void (*event_wait)(ggml_backend_t, ggml_backend_event_t);
    ggml_abi_unused graph_optimize;
};

struct ggml_backend {
    ggml_guid_t guid;
    ggml_backend_i iface;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_event {
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_device_i {
    const char * (*get_name)(ggml_backend_dev_t);
    const char * (*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t * free_bytes, size_t * total_bytes);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char * params);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t, void * ptr, size_t size_bytes,
                                                  size_t max_tensor_bytes);
    bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    bool (*offload_op)(ggml_backend_dev_t, const ggml_tensor *);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, ggml_backend_event_t);
    void (*event_synchronize)(ggml_backend_dev_t, ggml_backend_event_t);
};

struct ggml_backend_device {
    ggml_backend_device_i iface;
    ggml_backend_reg_t reg;
    void * context;
};

struct ggml_backend_reg_i {
    const char * (*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t index);
    void * (*get_proc_address)(ggml_backend_reg_t, const char * name);
};

struct ggml_backend_reg {
    int api_version;
    ggml_backend_reg_i iface;
    void * context;
};

struct ggml_hash_set {
    size_t size;
    uint32_t * used;  // a bit a slot
    ggml_tensor ** keys;
};

struct ggml_cgraph {
    int size;
    int n_nodes;
    int n_leafs;
    ggml_tensor ** nodes;
    ggml_tensor ** grads;
    ggml_tensor ** grad_accs;
    ggml_tensor ** leafs;
    int32_t * use_counts;  // by slot of visited_hash_set
    ggml_hash_set visited_hash_set;
    int order;
    uint64_t uid;
};

}  // extern "C"

namespace ggml_abi {

constexpr int api_version = 2;
constexpr const char * ggml_version_checked = "0.25.3";

// Empty when the ggml in this process is the one this header describes, otherwise the sentence to show.
inline std::string mismatch(const char * who) {
    const std::string found = ggml_version();
    if (found == ggml_version_checked) { return {}; }
    return std::string(who) + ": built for ggml " + ggml_version_checked + ", but this program carries ggml " + found +
           "; use a llama.cpp with ggml " + ggml_version_checked + " or rebuild moetune against this one";
}

// Nodes [first, last) of `graph`, sharing its nodes and use counts.
inline ggml_cgraph slice(const ggml_cgraph & graph, int first, int last) {
    ggml_cgraph part = graph;
    part.size = 0;
    part.n_nodes = last - first;
    part.n_leafs = 0;
    part.nodes = graph.nodes + first;
    part.grads = nullptr;
    part.grad_accs = nullptr;
    part.leafs = nullptr;
    part.uid = 0;
    return part;
}

// How often `tensor` is read by nodes of the whole graph that `graph` is a slice of; -1 if the graph does not know it.
inline int use_count(const ggml_cgraph & graph, const ggml_tensor * tensor) {
    const ggml_hash_set & set = graph.visited_hash_set;
    if (set.size == 0 || graph.use_counts == nullptr) { return -1; }
    const size_t home = (reinterpret_cast<uintptr_t>(tensor) >> 4) % set.size;
    for (size_t step = 0; step < set.size; ++step) {
        const size_t at = (home + step) % set.size;
        if (((set.used[at / 32] >> (at % 32)) & 1U) == 0) { return -1; }
        if (set.keys[at] == tensor) { return graph.use_counts[at]; }
    }
    return -1;
}

}  // namespace ggml_abi
