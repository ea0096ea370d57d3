// Measures the emulated machine's throttles, one at a time, against what they were told. Wants none set
// in the environment.
#include <thread>

#include "emulator_harness.h"

using namespace harness;

namespace {

double seconds_since(std::chrono::steady_clock::time_point began) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// The best of many runs meets the model; no run beats it. Other programs may make any single run late.
void takes(const char * what, double modelled_seconds, const std::function<void()> & work) {
    double best = 1e9;
    for (int attempt = 0; attempt < 25; ++attempt) {
        const auto began = std::chrono::steady_clock::now();
        work();
        best = std::min(best, seconds_since(began));
    }
    std::printf("%-48s asked %9.1f us, got %9.1f us\n", what, modelled_seconds * 1e6, best * 1e6);
    require(best >= 0.999 * modelled_seconds, std::string(what) + ": faster than the machine emulated");
    require(best <= 1.05 * modelled_seconds + 20e-6, std::string(what) + ": slower than the machine emulated");
}

void throttles_take_the_time_they_model() {
    const Backend emu = backend_named("EMU0");
    const Context context = new_context();
    ggml_tensor * bytes = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, 1 << 20);
    ggml_tensor * small = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 64);
    ggml_tensor * large = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 1 << 18);
    ggml_tensor * chain = small;
    for (int i = 0; i < 10; ++i) { chain = ggml_scale(context.get(), chain, 1.01F); }
    ggml_cgraph * launches = ggml_new_graph(context.get());
    ggml_build_forward_expand(launches, chain);
    ggml_cgraph * traffic = ggml_new_graph(context.get());
    ggml_build_forward_expand(traffic, ggml_scale(context.get(), large, 0.5F));
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
    ggml_backend_buffer_clear(buffer.get(), 0);
    Bytes host(1 << 20);

    set("EMU_LINK_GBPS", "0.25");
    takes("4 KiB down", 8e-6 + 4096 / 0.25e9, [&] { ggml_backend_tensor_set(bytes, host.data(), 0, 4096); });
    takes("40 KiB up", 8e-6 + 40960 / 0.25e9, [&] { ggml_backend_tensor_get(bytes, host.data(), 0, 40960); });
    takes("1 MiB down", 8e-6 + 1048576 / 0.25e9, [&] { ggml_backend_tensor_set(bytes, host.data(), 0, 1 << 20); });
    takes("16 queued transfers of 40 KiB", 16 * (8e-6 + 40960 / 0.25e9), [&] {
        for (int i = 0; i < 16; ++i) { ggml_backend_tensor_set_async(emu.get(), bytes, host.data(), 0, 40960); }
        ggml_backend_synchronize(emu.get());
    });
    takes("two threads, 128 KiB each", 2 * (8e-6 + 131072 / 0.25e9), [&] {
        std::thread other([&] { ggml_backend_tensor_set(bytes, host.data(), 0, 131072); });
        ggml_backend_tensor_get(large, host.data() + (1 << 19), 0, 131072);
        other.join();
    });
    set("EMU_LINK_GBPS", "0");

    set("EMU_LAUNCH_US", "20");
    takes("10 launches of 20 us", 200e-6, [&] { ggml_backend_graph_compute(emu.get(), launches); });
    takes("8 queued graphs of 10 launches", 1600e-6, [&] {
        for (int i = 0; i < 8; ++i) { ggml_backend_graph_compute_async(emu.get(), launches); }
        ggml_backend_synchronize(emu.get());
    });
    set("EMU_LAUNCH_US", "0");

    set("EMU_DEVICE_GBPS", "0.5");
    takes("2 MiB of device memory", 2097152 / 0.5e9, [&] { ggml_backend_graph_compute(emu.get(), traffic); });
    set("EMU_DEVICE_GBPS", "0");

    const Backend slow = backend_named("EMUHOST");
    set_threads(slow.get(), 1);
    const RoutedFfn ffn(slow.get());
    const Activations io(slow.get(), 1);
    const Floats x = random_floats(n_embd, 1);
    const auto ids = routed_ids(1, 1);
    ggml_backend_tensor_set(io.x, x.data(), 0, ggml_nbytes(io.x));
    ggml_backend_tensor_set(io.ids, ids.data(), 0, ggml_nbytes(io.ids));
    const FfnGraph graph(slow.get(), ffn, io);
    set("EMU_HOST_GBPS", "0.05");
    const double expert_bytes = static_cast<double>(ffn.gate->nb[2] + ffn.up->nb[2] + ffn.down->nb[2]);
    takes("2 experts of the slow host", 2 * expert_bytes / 0.05e9,
          [&] { ggml_backend_graph_compute(slow.get(), graph.graph); });
    set("EMU_HOST_GBPS", "0");
    require(emu_set("EMU_VRAM_MIB", "1") == EMU_UNKNOWN_KEY, "memory is fixed at registration");
    require(emu_set("EMU_LINK_GBPS", "fast") == EMU_BAD_VALUE, "nonsense is refused");
}

// A token's few bytes queue up behind an expert's many; alone, nobody stands in line.
void standing_in_line_is_counted() {
    const Backend one = backend_named("EMU0");
    const Backend other = backend_named("EMU0");
    const Context context = new_context();
    ggml_tensor * large = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, 1 << 20);
    ggml_tensor * small = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, 1 << 10);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), one.get()));
    const Bytes host(1 << 20);
    set("EMU_LINK_GBPS", "0.25");
    const emu_counter_values alone = counters();
    for (int i = 0; i < 4; ++i) { ggml_backend_tensor_set_async(one.get(), large, host.data(), 0, 1 << 18); }
    ggml_backend_synchronize(one.get());
    ggml_backend_tensor_set(small, host.data(), 0, 1 << 10);
    require(counters().queue_link_wait_ns == alone.queue_link_wait_ns, "a queue does not wait for itself");
    require(counters().caller_link_wait_ns == alone.caller_link_wait_ns, "nobody before this caller");

    const uint64_t transfer_ns = 8'000 + (1 << 20) * 4;
    ggml_backend_tensor_set_async(one.get(), large, host.data(), 0, 1 << 20);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ggml_backend_tensor_set_async(other.get(), small, host.data(), 0, 1 << 10);
    ggml_backend_synchronize(other.get());
    const uint64_t queue_ns = counters().queue_link_wait_ns - alone.queue_link_wait_ns;
    std::printf("a queue waited %.2f ms for the other's %.2f ms\n", queue_ns * 1e-6, transfer_ns * 1e-6);
    require(queue_ns > 0 && queue_ns < transfer_ns, "the rest of the other queue's transfer");

    std::thread busy([&] { ggml_backend_tensor_set(large, host.data(), 0, 1 << 20); });
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ggml_backend_tensor_set(small, host.data(), 0, 1 << 10);
    busy.join();
    const uint64_t caller_ns = counters().caller_link_wait_ns - alone.caller_link_wait_ns;
    require(caller_ns > 0 && caller_ns < transfer_ns, "the rest of the other caller's transfer");
    set("EMU_LINK_GBPS", "0");
}

// Decoding submits dozens of small graphs a token.
void submitting_is_cheap() {
    const Backend emu = backend_named("EMU0");
    const Context context = new_context();
    ggml_tensor * chain = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 64);
    for (int i = 0; i < 10; ++i) { chain = ggml_scale(context.get(), chain, 1.01F); }
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, chain);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
    ggml_backend_buffer_clear(buffer.get(), 0);
    double best = 1e9;
    for (int attempt = 0; attempt < 200; ++attempt) {
        const auto began = std::chrono::steady_clock::now();
        ggml_backend_graph_compute_async(emu.get(), graph);
        best = std::min(best, seconds_since(began));
        if (attempt % 8 == 7) { ggml_backend_synchronize(emu.get()); }
    }
    std::printf("submitting 10 nodes takes %.2f us\n", best * 1e6);
    require(best < 10e-6, "submitting a small graph");
}

}  // namespace

int main() {
    register_emulator();
    run("throttles_take_the_time_they_model", throttles_take_the_time_they_model);
    run("standing_in_line_is_counted", standing_in_line_is_counted);
    run("submitting_is_cheap", submitting_is_cheap);
    return 0;
}
