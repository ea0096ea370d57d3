// The whole plugin under stress: several contexts compute one routed FFN at once on an accelerator with an asynchronous
// queue, while settings change and slots come and go. Every result must equal the CPU's, bit for bit.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "backend/device.h"
#include "backend/engine.h"
#include "backend/handles.h"
#include "ggml-alloc.h"

#define REQUIRE(condition)                                                       \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (false)

extern "C" ggml_backend_reg_t emulator_backend_init();  // the emulator's ggml_backend_init, renamed for this program

namespace {

constexpr int n_embd = 64, n_ff = 32, n_expert = 12, n_used = 3;

struct Weights {
    hotcache::ContextPtr context;
    hotcache::BufferPtr buffer;
    ggml_tensor *gate, *up, *down, *bias;
};

Weights make_weights(ggml_backend_buffer_type_t buft) {
    Weights w;
    w.context = hotcache::make_context(8);
    ggml_context * c = w.context.get();
    w.gate = ggml_new_tensor_3d(c, GGML_TYPE_Q8_0, n_embd, n_ff, n_expert);
    w.up = ggml_new_tensor_3d(c, GGML_TYPE_Q8_0, n_embd, n_ff, n_expert);
    w.down = ggml_new_tensor_3d(c, GGML_TYPE_F16, n_ff, n_embd, n_expert);
    w.bias = ggml_new_tensor_2d(c, GGML_TYPE_F32, n_embd, n_expert);
    ggml_set_name(w.gate, "blk.0.ffn_gate_exps.weight");
    ggml_set_name(w.up, "blk.0.ffn_up_exps.weight");
    ggml_set_name(w.down, "blk.0.ffn_down_exps.weight");
    ggml_set_name(w.bias, "blk.0.ffn_down_exps.bias");
    w.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(c, buft));
    REQUIRE(w.buffer != nullptr);
    ggml_backend_buffer_set_usage(w.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    for (ggml_tensor * t : {w.gate, w.up, w.down, w.bias}) {
        std::vector<float> values(static_cast<size_t>(ggml_nelements(t)));
        for (float & v : values) { v = normal(rng) * 0.2F; }
        std::vector<char> data(ggml_nbytes(t));
        ggml_quantize_chunk(t->type, values.data(), data.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
        if (t->type == GGML_TYPE_F32) { std::memcpy(data.data(), values.data(), data.size()); }
        ggml_backend_tensor_set(t, data.data(), 0, data.size());
    }
    return w;
}

struct Step {
    int n_tokens;
    std::vector<float> x;
    std::vector<int32_t> ids;
    std::vector<float> routing;
};

Step random_step(std::mt19937 & rng) {
    const int sizes[] = {1, 1, 1, 2, 5, 31, 32, 40};
    Step step;
    step.n_tokens = sizes[rng() % 8];
    std::normal_distribution<float> normal;
    for (int i = 0; i < step.n_tokens * n_embd; ++i) { step.x.push_back(normal(rng)); }
    for (int i = 0; i < step.n_tokens * n_used; ++i) {
        step.routing.push_back(normal(rng));
        // Few experts often, all of them sometimes, one of them twice in a token now and then.
        step.ids.push_back(static_cast<int32_t>(std::min(rng() % n_expert, rng() % n_expert)));
    }
    return step;
}

// Computes a step as llama.cpp builds it, through a scheduler over `backends`.
std::vector<float> compute(std::vector<ggml_backend_t> backends, const Weights & w, const Step & step) {
    auto context = hotcache::make_context(64, 64);
    ggml_context * c = context.get();
    const int n = step.n_tokens;
    ggml_tensor * x = ggml_new_tensor_3d(c, GGML_TYPE_F32, n_embd, 1, n);
    ggml_tensor * ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, n_used, n);
    ggml_tensor * routing = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, n_used, n);
    for (ggml_tensor * t : {x, ids, routing}) { ggml_set_input(t); }
    ggml_cgraph * graph = ggml_new_graph_custom(c, 64, false);
    ggml_tensor * act = ggml_swiglu_split(c, ggml_mul_mat_id(c, w.gate, x, ids), ggml_mul_mat_id(c, w.up, x, ids));
    ggml_tensor * out = ggml_add_id(c, ggml_mul_mat_id(c, w.down, act, ids), w.bias, ids);
    out = ggml_mul(c, out, routing);
    ggml_tensor * sum = nullptr;
    for (int k = 0; k < n_used; ++k) {
        ggml_tensor * part = ggml_view_2d(c, out, n_embd, n, out->nb[2], static_cast<size_t>(k) * out->nb[1]);
        sum = sum == nullptr ? part : ggml_add(c, sum, part);
    }
    ggml_set_output(sum);
    ggml_build_forward_expand(graph, sum);

    ggml_backend_sched_t sched =
        ggml_backend_sched_new(backends.data(), nullptr, static_cast<int>(backends.size()), 256, false, false);
    REQUIRE(ggml_backend_sched_alloc_graph(sched, graph));
    ggml_backend_tensor_set(x, step.x.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(ids, step.ids.data(), 0, ggml_nbytes(ids));
    ggml_backend_tensor_set(routing, step.routing.data(), 0, ggml_nbytes(routing));
    REQUIRE(ggml_backend_sched_graph_compute(sched, graph) == GGML_STATUS_SUCCESS);
    std::vector<float> result(static_cast<size_t>(n) * n_embd);
    ggml_backend_tensor_get(sum, result.data(), 0, result.size() * sizeof(float));
    ggml_backend_sched_free(sched);
    return result;
}

// One thread: the sanitizers cannot see into ggml's own thread pool.
hotcache::BackendPtr cpu_backend() {
    hotcache::BackendPtr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu.get()));
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    set_threads(cpu.get(), 1);
    return cpu;
}

void decode(const Weights & plain, const Weights & cached, unsigned seed, int steps) {
    hotcache::BackendPtr cpu = cpu_backend();
    hotcache::BackendPtr hot(ggml_backend_dev_init(ggml_backend_reg_dev_get(hotcache::registry(), 0), nullptr));
    REQUIRE(hot != nullptr);
    hotcache::set_n_threads(hot.get(), 1);
    std::mt19937 rng(seed);
    for (int i = 0; i < steps; ++i) {
        const Step step = random_step(rng);
        const auto expected = compute({cpu.get()}, plain, step);
        const auto got = compute({hot.get(), cpu.get()}, cached, step);
        REQUIRE(expected.size() == got.size());
        REQUIRE(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)) == 0);
    }
}

void change_settings(std::atomic<bool> & stop) {
    hotcache::Engine & engine = *hotcache::engine();
    std::mt19937 rng(99);
    while (!stop.load()) {
        switch (rng() % 8) {
            case 0: REQUIRE(engine.set("slots", std::to_string(rng() % 14)).empty()); break;
            case 1: REQUIRE(engine.set("policy", rng() % 2 == 0 ? "lru" : "heat").empty()); break;
            case 2: REQUIRE(engine.set("promotions", std::to_string(rng() % 5)).empty()); break;
            case 3: REQUIRE(engine.set("interval", std::to_string(1 + rng() % 4)).empty()); break;
            case 4: engine.reset_counters(); break;
            case 5: engine.clear(); break;
            case 6: REQUIRE(!engine.set("device", "no such device").empty()); break;
            default: engine.reports(); break;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const int steps = argc > 1 ? std::atoi(argv[1]) : 100;
    ggml_backend_reg_t emulator = emulator_backend_init();
    REQUIRE(emulator != nullptr && hotcache::registry() != nullptr);
    ggml_backend_register(emulator);
    ggml_backend_register(hotcache::registry());
    hotcache::Engine & engine = *hotcache::engine();
    for (const auto & [key, value] : {std::pair("device", "EMU0"), {"slots", "4"}, {"interval", "1"}, {"dwell", "0"}}) {
        REQUIRE(engine.set(key, value).empty());
    }

    ggml_backend_dev_t device = ggml_backend_reg_dev_get(hotcache::registry(), 0);
    hotcache::BackendPtr cpu = cpu_backend();
    const Weights plain = make_weights(ggml_backend_get_default_buffer_type(cpu.get()));
    {
        const Weights cached = make_weights(ggml_backend_dev_buffer_type(device));
        decode(plain, cached, 1, steps);
        const auto reports = engine.reports();
        REQUIRE(reports.size() == 1 && reports[0].n_slots == 4);
        REQUIRE(reports[0].counters.hits > 0 && reports[0].counters.misses > 0 && reports[0].counters.promotions > 4);

        std::atomic<bool> stop{false};
        std::thread settings([&] { change_settings(stop); });
        std::vector<std::thread> contexts;
        for (unsigned i = 0; i < 3; ++i) { contexts.emplace_back([&, i] { decode(plain, cached, 10 + i, steps); }); }
        for (std::thread & t : contexts) { t.join(); }
        stop = true;
        settings.join();
    }
    // The weights are gone, and their slots with them.
    REQUIRE(engine.reports().empty());
    std::printf("4 x %d steps\n", steps);
    return 0;
}
