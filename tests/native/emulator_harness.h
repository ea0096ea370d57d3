// What the emulator's native tests share: owners of ggml's objects, a routed FFN, and the CPU's answer to it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include "../../engine/native/emulator/emulator.h"
#include "../../engine/native/ggml_abi.h"

extern "C" ggml_backend_reg_t ggml_backend_init(void);

namespace harness {

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;

inline void require(bool holds, const std::string & claim) {
    if (holds) { return; }
    std::printf("FAILED: %s\n", claim.c_str());
    std::fflush(stdout);
    std::_Exit(1);
}

struct Free {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend_event_t event) const { ggml_backend_event_free(event); }
    void operator()(ggml_context * context) const { ggml_free(context); }
};

using Backend = std::unique_ptr<ggml_backend, Free>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free>;
using Event = std::unique_ptr<ggml_backend_event, Free>;
using Context = std::unique_ptr<ggml_context, Free>;

inline Backend backend_named(const char * name) {
    Backend backend(ggml_backend_init_by_name(name, nullptr));
    require(backend != nullptr, std::string("a backend named ") + name);
    return backend;
}

inline void set_threads(ggml_backend_t backend, int threads) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    void * address = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    reinterpret_cast<ggml_backend_set_n_threads_t>(address)(backend, threads);
}

inline Context new_context(size_t n_tensors = 64) {
    return Context(ggml_init({n_tensors * ggml_tensor_overhead() + 2 * ggml_graph_overhead(), nullptr, true}));
}

inline Floats random_floats(size_t n, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    Floats values(n);
    std::generate(values.begin(), values.end(), [&] { return normal(generator); });
    return values;
}

inline emu_counter_values counters() {
    emu_counter_values values{};
    require(emu_counters(&values, sizeof(values)) == EMU_OK, "counters after registration");
    return values;
}

inline void set(const char * key, const char * value) {
    require(emu_set(key, value) == EMU_OK, std::string("setting ") + key);
}

// ---- a routed FFN, the graph this machine exists for

constexpr int64_t n_embd = 64, n_ff = 96, n_expert = 8, n_used = 2;

struct RoutedFfn {
    Context weights_context = new_context();
    ggml_tensor * norm;
    ggml_tensor * gate;
    ggml_tensor * up;
    ggml_tensor * down;
    Buffer weights;

    explicit RoutedFfn(ggml_backend_t backend) {
        ggml_context * context = weights_context.get();
        norm = ggml_new_tensor_1d(context, GGML_TYPE_F32, n_embd);
        gate = ggml_new_tensor_3d(context, GGML_TYPE_Q8_0, n_embd, n_ff, n_expert);
        up = ggml_new_tensor_3d(context, GGML_TYPE_Q8_0, n_embd, n_ff, n_expert);
        down = ggml_new_tensor_3d(context, GGML_TYPE_Q8_0, n_ff, n_embd, n_expert);
        weights.reset(ggml_backend_alloc_ctx_tensors(context, backend));
        require(weights != nullptr, "memory for the weights");
        const Floats scale = random_floats(n_embd, 1);
        ggml_backend_tensor_set(norm, scale.data(), 0, ggml_nbytes(norm));
        fill(gate, 2);
        fill(up, 3);
        fill(down, 4);
    }

    static void fill(ggml_tensor * tensor, unsigned seed) {
        const Floats values = random_floats(static_cast<size_t>(ggml_nelements(tensor)), seed);
        Bytes quantized(ggml_nbytes(tensor));
        const int64_t n_rows = ggml_nrows(tensor);
        ggml_quantize_chunk(tensor->type, values.data(), quantized.data(), 0, n_rows, tensor->ne[0], nullptr);
        ggml_backend_tensor_set(tensor, quantized.data(), 0, quantized.size());
    }
};

struct Activations {
    Context context = new_context();
    ggml_tensor * x;
    ggml_tensor * ids;
    ggml_tensor * out;
    Buffer buffer;

    Activations(ggml_backend_t backend, int64_t n_tokens) {
        x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_embd, n_tokens);
        ids = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, n_used, n_tokens);
        out = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, n_embd, n_used, n_tokens);
        buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    }
};

// One use of the FFN: a graph in a context of its own, its intermediate results in a buffer of its own.
struct FfnGraph {
    Context context = new_context();
    ggml_cgraph * graph = ggml_new_graph(context.get());
    Buffer buffer;

    FfnGraph(ggml_backend_t backend, const RoutedFfn & ffn, const Activations & io) {
        ggml_context * c = context.get();
        const int64_t n_tokens = io.x->ne[1];
        ggml_tensor * normed = ggml_mul(c, ggml_rms_norm(c, io.x, 1e-6F), ffn.norm);
        ggml_tensor * x = ggml_reshape_3d(c, normed, n_embd, 1, n_tokens);
        ggml_tensor * gate = ggml_mul_mat_id(c, ffn.gate, x, io.ids);
        ggml_tensor * up = ggml_mul_mat_id(c, ffn.up, x, io.ids);
        ggml_tensor * down = ggml_mul_mat_id(c, ffn.down, ggml_swiglu_split(c, gate, up), io.ids);
        ggml_build_forward_expand(graph, ggml_cpy(c, down, io.out));
        buffer.reset(ggml_backend_alloc_ctx_tensors(c, backend));
        require(buffer != nullptr, "memory for the graph");
    }

    // What a caller who reuses its graph memory leaves behind for a driver that did not copy.
    void scribble() {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            node->op = GGML_OP_NONE;
            node->data = nullptr;
            std::fill(std::begin(node->src), std::end(node->src), nullptr);
        }
        context.reset();
    }
};

inline std::vector<int32_t> routed_ids(int64_t n_tokens, unsigned seed) {
    std::vector<int32_t> ids;
    for (int64_t token = 0; token < n_tokens; ++token) {
        ids.push_back(static_cast<int32_t>((seed + token) % n_expert));
        ids.push_back(static_cast<int32_t>((seed + token + 1 + seed % 3) % n_expert));
    }
    return ids;
}

inline Floats run_ffn(ggml_backend_t backend, const RoutedFfn & ffn, int64_t n_tokens, unsigned seed) {
    const Activations io(backend, n_tokens);
    const Floats x = random_floats(static_cast<size_t>(n_embd * n_tokens), seed);
    const auto ids = routed_ids(n_tokens, seed);
    ggml_backend_tensor_set(io.x, x.data(), 0, ggml_nbytes(io.x));
    ggml_backend_tensor_set(io.ids, ids.data(), 0, ggml_nbytes(io.ids));
    const FfnGraph once(backend, ffn, io);
    require(ggml_backend_graph_compute(backend, once.graph) == GGML_STATUS_SUCCESS, "the graph computes");
    Floats out(static_cast<size_t>(ggml_nelements(io.out)));
    ggml_backend_tensor_get(io.out, out.data(), 0, ggml_nbytes(io.out));
    return out;
}

inline bool same_bits(const Floats & a, const Floats & b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Reference {
    Backend cpu = backend_named("CPU");
    RoutedFfn ffn{(set_threads(cpu.get(), 1), cpu.get())};

    Floats operator()(int64_t n_tokens, unsigned seed) { return run_ffn(cpu.get(), ffn, n_tokens, seed); }
};

inline void register_emulator() {
    ggml_backend_reg_t reg = ggml_backend_init();
    require(reg != nullptr, "registration");
    ggml_backend_register(reg);
}

inline void run(const char * name, const std::function<void()> & scenario) {
    const auto began = std::chrono::steady_clock::now();
    scenario();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    std::printf("ok %-56s %7.1f ms\n", name, took.count());
    std::fflush(stdout);
}

}  // namespace harness
