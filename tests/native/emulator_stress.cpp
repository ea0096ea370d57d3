// Drives the emulated machine the way llama.cpp and a cache would, only harder, and compares every result with the CPU
// backend's, bit for bit. Built plain, with ThreadSanitizer and with AddressSanitizer by test_emulator.py.
//
// Prints one line a scenario; exits non-zero at the first surprise.
#include <atomic>
#include <thread>

#include "emulator_harness.h"

using namespace harness;

namespace {

void a_graph_may_be_destroyed_as_soon_as_it_is_submitted(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    const RoutedFfn ffn(emu.get());
    constexpr int n_rounds = 24;
    struct Round {
        int64_t n_tokens;
        Floats x;
        std::vector<int32_t> ids;
        Floats out;
        std::unique_ptr<Activations> io;
        Buffer scratch;
    };
    std::vector<Round> rounds;
    for (unsigned i = 0; i < n_rounds; ++i) {
        const int64_t n_tokens = 1 + i % 4;
        rounds.push_back({n_tokens, random_floats(static_cast<size_t>(n_embd * n_tokens), i), routed_ids(n_tokens, i),
                          Floats(static_cast<size_t>(n_embd * n_used * n_tokens)),
                          std::make_unique<Activations>(emu.get(), n_tokens), nullptr});
    }
    for (Round & round : rounds) {
        ggml_backend_tensor_set_async(emu.get(), round.io->x, round.x.data(), 0, ggml_nbytes(round.io->x));
        ggml_backend_tensor_set_async(emu.get(), round.io->ids, round.ids.data(), 0, ggml_nbytes(round.io->ids));
        FfnGraph once(emu.get(), ffn, *round.io);
        require(ggml_backend_graph_compute_async(emu.get(), once.graph) == GGML_STATUS_SUCCESS, "submission");
        ggml_backend_tensor_get_async(emu.get(), round.io->out, round.out.data(), 0, ggml_nbytes(round.io->out));
        once.scribble();
        round.scratch = std::move(once.buffer);
    }
    ggml_backend_synchronize(emu.get());
    for (unsigned i = 0; i < n_rounds; ++i) {
        const Floats expected = reference(rounds[i].n_tokens, i);
        require(same_bits(rounds[i].out, expected), "queued graph " + std::to_string(i) + " equals the CPU's");
    }
}

void ids_may_be_rewritten_in_queue_order(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    const RoutedFfn ffn(emu.get());
    const Activations io(emu.get(), 1);
    const FfnGraph graph(emu.get(), ffn, io);
    constexpr unsigned n_rounds = 16;
    std::vector<std::vector<int32_t>> ids;
    std::vector<Floats> xs, outs;
    for (unsigned i = 0; i < n_rounds; ++i) {
        ids.push_back(routed_ids(1, i));
        xs.push_back(random_floats(n_embd, i));
        outs.emplace_back(n_embd * n_used);
    }
    const uint64_t launched = counters().launches;
    for (unsigned i = 0; i < n_rounds; ++i) {
        ggml_backend_tensor_set_async(emu.get(), io.x, xs[i].data(), 0, ggml_nbytes(io.x));
        ggml_backend_tensor_set_async(emu.get(), io.ids, ids[i].data(), 0, ggml_nbytes(io.ids));
        ggml_backend_graph_compute_async(emu.get(), graph.graph);
        ggml_backend_tensor_get_async(emu.get(), io.out, outs[i].data(), 0, ggml_nbytes(io.out));
    }
    ggml_backend_synchronize(emu.get());
    for (unsigned i = 0; i < n_rounds; ++i) { require(same_bits(outs[i], reference(1, i)), "one tensor, many tokens"); }
    require(counters().launches - launched == n_rounds * 7, "norm, mul, gate, up, glu, down, cpy; not the view");
}

void threads_share_the_link(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    const RoutedFfn ffn(emu.get());
    const emu_counter_values before = counters();
    constexpr size_t n_bytes = 64 * 1024;
    constexpr int n_rounds = 20;
    const auto exchange = [&](uint8_t seed) {
        const Context context = new_context();
        ggml_tensor * tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, n_bytes);
        const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
        for (int round = 0; round < n_rounds; ++round) {
            const Bytes sent(n_bytes, static_cast<uint8_t>(seed + round));
            Bytes received(n_bytes, 0);
            ggml_backend_tensor_set(tensor, sent.data(), 0, n_bytes);
            ggml_backend_tensor_get(tensor, received.data(), 0, n_bytes);
            require(sent == received, "what went down comes up");
        }
    };
    std::thread one(exchange, uint8_t{1});
    std::thread two(exchange, uint8_t{101});
    for (unsigned i = 0; i < 8; ++i) {
        require(same_bits(run_ffn(emu.get(), ffn, 2, i), reference(2, i)), "a graph beside foreign transfers");
    }
    one.join();
    two.join();
    require(counters().h2d_bytes - before.h2d_bytes >= 2 * n_rounds * n_bytes, "every byte down is counted");
    require(counters().d2h_bytes - before.d2h_bytes >= 2 * n_rounds * n_bytes, "every byte up is counted");
}

void memory_ends_where_it_was_told_to() {
    ggml_backend_dev_t device = ggml_backend_dev_by_name("EMU0");
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    size_t free_bytes = 0, total_bytes = 0;
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    require(free_bytes == total_bytes, "everything was given back so far");
    std::vector<Buffer> held;
    constexpr size_t n_bytes = 1000 * 1000;
    for (;;) {
        Buffer buffer(ggml_backend_buft_alloc_buffer(type, n_bytes));
        if (buffer == nullptr) { break; }
        require(reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer.get())) % 128 == 0, "alignment");
        held.push_back(std::move(buffer));
    }
    require(held.size() == total_bytes / ((n_bytes + 127) / 128 * 128), "room for what fits");
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    require(free_bytes < n_bytes + 128, "a full memory says so");
    require(Buffer(ggml_backend_buft_alloc_buffer(type, SIZE_MAX - 4096)) == nullptr, "no overflow");
    held.clear();
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    require(free_bytes == total_bytes, "freeing gives everything back");
    require(Buffer(ggml_backend_buft_alloc_buffer(type, total_bytes)) != nullptr, "all of it at once");
    require(counters().vram_peak_bytes == total_bytes && counters().vram_used_bytes == 0, "peak and present use");
}

void fresh_memory_is_poisoned() {
    const Backend emu = backend_named("EMU0");
    const Context context = new_context();
    ggml_tensor * tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 16);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
    Floats values(16);
    ggml_backend_tensor_get(tensor, values.data(), 0, ggml_nbytes(tensor));
    require(std::all_of(values.begin(), values.end(), [](float x) { return x != x; }), "NaN before any write");
    ggml_backend_buffer_clear(buffer.get(), 0);
    ggml_backend_tensor_memset(tensor, 0x3F, 4, 4);
    ggml_backend_tensor_get(tensor, values.data(), 0, ggml_nbytes(tensor));
    require(values[0] == 0 && values[1] > 0.7F && values[2] == 0, "clear and memset reach the device");
}

void copies_stay_on_the_device() {
    const Backend emu = backend_named("EMU0");
    const Context context = new_context();
    ggml_tensor * from = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 1024);
    ggml_tensor * to = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 1024);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
    const Floats sent = random_floats(1024, 7);
    Floats received(1024);
    ggml_backend_tensor_set(from, sent.data(), 0, ggml_nbytes(from));
    const emu_counter_values before = counters();
    ggml_backend_tensor_copy(from, to);
    require(counters().h2d_bytes == before.h2d_bytes, "nothing goes down the link");
    require(counters().d2h_bytes == before.d2h_bytes, "nothing comes up the link");
    ggml_backend_tensor_get(to, received.data(), 0, ggml_nbytes(to));
    require(same_bits(sent, received), "the copy is a copy");
}

void streams_wait_for_events(Reference & reference) {
    const Backend producer = backend_named("EMU0");
    const Backend consumer = backend_named("EMU0");
    const RoutedFfn ffn(producer.get());
    const Activations io(producer.get(), 1);
    const FfnGraph graph(producer.get(), ffn, io);
    ggml_backend_dev_t device = ggml_backend_get_device(producer.get());
    const Event done(ggml_backend_event_new(device));
    const Event taken(ggml_backend_event_new(device));
    ggml_backend_event_synchronize(done.get());
    ggml_backend_event_wait(producer.get(), taken.get());
    constexpr unsigned n_rounds = 12;
    std::vector<Floats> xs, outs;
    for (unsigned i = 0; i < n_rounds; ++i) {
        xs.push_back(random_floats(n_embd, i));
        outs.emplace_back(n_embd * n_used);
    }
    std::vector<std::vector<int32_t>> ids;
    for (unsigned i = 0; i < n_rounds; ++i) { ids.push_back(routed_ids(1, i)); }
    for (unsigned i = 0; i < n_rounds; ++i) {
        ggml_backend_tensor_set_async(producer.get(), io.x, xs[i].data(), 0, ggml_nbytes(io.x));
        ggml_backend_tensor_set_async(producer.get(), io.ids, ids[i].data(), 0, ggml_nbytes(io.ids));
        ggml_backend_event_wait(producer.get(), taken.get());
        ggml_backend_graph_compute_async(producer.get(), graph.graph);
        ggml_backend_event_record(done.get(), producer.get());
        ggml_backend_event_wait(consumer.get(), done.get());
        ggml_backend_tensor_get_async(consumer.get(), io.out, outs[i].data(), 0, ggml_nbytes(io.out));
        ggml_backend_event_record(taken.get(), consumer.get());
    }
    ggml_backend_event_synchronize(taken.get());
    for (unsigned i = 0; i < n_rounds; ++i) { require(same_bits(outs[i], reference(1, i)), "read by another stream"); }
    ggml_backend_synchronize(producer.get());
    ggml_backend_synchronize(consumer.get());
}

// One stream computes, another one's copy of the result feeds a third tensor, and nobody synchronises between.
void copies_between_streams_keep_order(Reference & reference) {
    const Backend producer = backend_named("EMU0");
    const Backend consumer = backend_named("EMU0");
    const RoutedFfn ffn(producer.get());
    const Activations io(producer.get(), 1);
    const FfnGraph graph(producer.get(), ffn, io);
    constexpr unsigned n_rounds = 12;
    const Context context = new_context();
    std::vector<ggml_tensor *> near, far;
    for (unsigned i = 0; i < n_rounds; ++i) {
        near.push_back(ggml_dup_tensor(context.get(), io.out));
        far.push_back(ggml_dup_tensor(context.get(), io.out));
    }
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), consumer.get()));
    std::vector<Floats> xs;
    std::vector<std::vector<int32_t>> ids;
    std::vector<Floats> outs(n_rounds, Floats(n_embd * n_used));
    for (unsigned i = 0; i < n_rounds; ++i) {
        xs.push_back(random_floats(n_embd, i));
        ids.push_back(routed_ids(1, i));
    }
    const emu_counter_values before = counters();
    for (unsigned i = 0; i < n_rounds; ++i) {
        ggml_backend_tensor_set_async(producer.get(), io.x, xs[i].data(), 0, ggml_nbytes(io.x));
        ggml_backend_tensor_set_async(producer.get(), io.ids, ids[i].data(), 0, ggml_nbytes(io.ids));
        ggml_backend_graph_compute_async(producer.get(), graph.graph);
        ggml_backend_tensor_copy_async(producer.get(), producer.get(), io.out, near[i]);
        ggml_backend_tensor_copy_async(producer.get(), consumer.get(), near[i], far[i]);
        ggml_backend_tensor_get_async(consumer.get(), far[i], outs[i].data(), 0, ggml_nbytes(far[i]));
    }
    ggml_backend_synchronize(consumer.get());
    for (unsigned i = 0; i < n_rounds; ++i) { require(same_bits(outs[i], reference(1, i)), "copied in order"); }
    const size_t up = counters().d2h_bytes - before.d2h_bytes;
    require(up == n_rounds * ggml_nbytes(io.out), "copies within the device do not use the link");
    ggml_backend_synchronize(producer.get());
}

// A cache may give the scheduler a type of its own that is the device's in all but address.
void a_cloned_buffer_type_is_the_devices(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    ggml_backend_dev_t device = ggml_backend_get_device(emu.get());
    ggml_backend_buffer_type clone = *ggml_backend_dev_buffer_type(device);
    require(ggml_backend_dev_supports_buft(device, &clone), "the device takes a copy of its type");
    const Context context = new_context();
    ggml_tensor * there = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, n_embd);
    const Buffer cloned(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), &clone));
    require(ggml_backend_buffer_get_type(cloned.get()) == &clone, "a buffer is of the type it was asked from");
    const RoutedFfn ffn(emu.get());
    const Activations io(emu.get(), 1);
    const FfnGraph graph(emu.get(), ffn, io);
    const Floats x = random_floats(n_embd, 5);
    const auto ids = routed_ids(1, 5);
    Floats out(n_embd * n_used);
    ggml_backend_tensor_set(there, x.data(), 0, ggml_nbytes(there));
    ggml_backend_tensor_set(io.ids, ids.data(), 0, ggml_nbytes(io.ids));
    const emu_counter_values before = counters();
    ggml_backend_tensor_copy_async(emu.get(), emu.get(), there, io.x);
    ggml_backend_graph_compute(emu.get(), graph.graph);
    ggml_backend_tensor_copy(there, io.x);
    require(counters().h2d_bytes == before.h2d_bytes && counters().d2h_bytes == before.d2h_bytes, "not by the link");
    ggml_backend_tensor_get(io.out, out.data(), 0, ggml_nbytes(io.out));
    require(same_bits(out, reference(1, 5)), "computed from memory of the cloned type");
}

void pinned_memory_is_host_memory(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(ggml_backend_get_device(emu.get()));
    require(pinned != nullptr && ggml_backend_buft_is_host(pinned), "a host buffer type");
    require(!ggml_backend_supports_buft(emu.get(), pinned), "the accelerator computes in its own memory only");
    require(ggml_backend_supports_buft(reference.cpu.get(), pinned), "the CPU computes in it");
    require(ggml_backend_supports_buft(backend_named("EMUHOST").get(), pinned), "so does the slow host");
    const Context context = new_context();
    ggml_tensor * here = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 64);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), pinned));
    require(ggml_backend_buffer_get_type(buffer.get()) == pinned, "a buffer of its own type");
    static_cast<float *>(here->data)[63] = 1;
}

void streams_come_and_go(Reference & reference) {
    const Backend steady = backend_named("EMU0");
    const RoutedFfn ffn(steady.get());
    std::atomic<bool> stop{false};
    std::thread churn([&] {
        while (!stop) {
            const Backend brief = backend_named("EMU0");
            const Buffer buffer(ggml_backend_alloc_buffer(brief.get(), 4096));
            require(buffer != nullptr, "memory for a brief stream");
        }
    });
    for (unsigned i = 0; i < 12; ++i) {
        require(same_bits(run_ffn(steady.get(), ffn, 3, i), reference(3, i)), "a graph while streams come and go");
    }
    stop = true;
    churn.join();
}

void freeing_waits_for_the_queue() {
    const Backend emu = backend_named("EMU0");
    constexpr size_t n_bytes = 256 * 1024;
    Bytes received(n_bytes, 0);
    {
        const Context context = new_context();
        ggml_tensor * tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, n_bytes);
        const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), emu.get()));
        ggml_backend_buffer_clear(buffer.get(), 42);
        ggml_backend_tensor_get_async(emu.get(), tensor, received.data(), 0, n_bytes);
    }
    require(received == Bytes(n_bytes, 42), "queued reads come before a free");
}

void the_slow_host_computes_any_graph(Reference & reference) {
    const Backend host = backend_named("EMUHOST");
    set_threads(host.get(), 1);
    const RoutedFfn ffn(host.get());
    const size_t expert_bytes = ffn.gate->nb[2] + ffn.up->nb[2] + ffn.down->nb[2];
    for (const int64_t n_tokens : {int64_t{1}, int64_t{5}, int64_t{64}}) {
        const uint64_t before = counters().host_expert_bytes;
        const auto seed = static_cast<unsigned>(n_tokens);
        const Floats out = run_ffn(host.get(), ffn, n_tokens, seed);
        require(same_bits(out, reference(n_tokens, seed)), "the slow host equals the CPU");
        const auto ids = routed_ids(n_tokens, seed);
        std::vector<int32_t> distinct = ids;
        std::sort(distinct.begin(), distinct.end());
        distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
        const uint64_t charged_bytes = counters().host_expert_bytes - before;
        require(charged_bytes == distinct.size() * expert_bytes, "each routed expert counts once");
    }
}

// ---- what can go wrong with a real device

void another_program_takes_memory() {
    ggml_backend_dev_t device = ggml_backend_dev_by_name("EMU0");
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    const Buffer held(ggml_backend_buft_alloc_buffer(type, 4 << 20));
    size_t free_bytes = 0, total_bytes = 0;
    set("EMU_VRAM_STOLEN_MIB", "7");
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    require(total_bytes - free_bytes == 11 << 20, "ours and theirs are gone");
    require(Buffer(ggml_backend_buft_alloc_buffer(type, free_bytes + 1)) == nullptr, "no more than what is left");
    set("EMU_VRAM_STOLEN_MIB", "1000");
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    require(free_bytes == 0, "nothing is left, not less than nothing");
    ggml_backend_buffer_clear(held.get(), 1);
    set("EMU_VRAM_STOLEN_MIB", "0");
}

void allocations_are_refused_now_and_then() {
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("EMU0"));
    set("EMU_REFUSE_ALLOC_EVERY", "3");
    const uint64_t before = counters().refused_allocations;
    int refused = 0;
    for (int i = 0; i < 9; ++i) { refused += Buffer(ggml_backend_buft_alloc_buffer(type, 4096)) == nullptr ? 1 : 0; }
    require(refused == 3 && counters().refused_allocations - before == 3, "each third");
    set("EMU_REFUSE_ALLOC_EVERY", "0");
}

void a_failed_graph_leaves_the_queue_usable(Reference & reference) {
    const Backend emu = backend_named("EMU0");
    const RoutedFfn ffn(emu.get());
    const Activations io(emu.get(), 1);
    const FfnGraph graph(emu.get(), ffn, io);
    const auto ids = routed_ids(1, 1);
    ggml_backend_tensor_set(io.ids, ids.data(), 0, ggml_nbytes(io.ids));
    set("EMU_FAIL_GRAPH_EVERY", "2");
    int failed = 0;
    for (int i = 0; i < 4; ++i) {
        failed += ggml_backend_graph_compute(emu.get(), graph.graph) == GGML_STATUS_FAILED ? 1 : 0;
    }
    set("EMU_FAIL_GRAPH_EVERY", "0");
    require(failed == 2 && counters().failed_graphs == 2, "each second");
    require(same_bits(run_ffn(emu.get(), ffn, 2, 3), reference(2, 3)), "right again");
}

// For good, so it comes last.
void a_lost_device_answers_nothing() {
    const Backend emu = backend_named("EMU0");
    const RoutedFfn ffn(emu.get());
    const Activations io(emu.get(), 1);
    const FfnGraph graph(emu.get(), ffn, io);
    const auto ids = routed_ids(1, 1);
    ggml_backend_tensor_set(io.ids, ids.data(), 0, ggml_nbytes(io.ids));
    set("EMU_LOST_AFTER_GRAPHS", "1");
    require(ggml_backend_graph_compute(emu.get(), graph.graph) == GGML_STATUS_SUCCESS, "the last one it computes");
    const uint64_t moved = counters().d2h_bytes;
    require(ggml_backend_graph_compute(emu.get(), graph.graph) == GGML_STATUS_FAILED, "gone");
    std::vector<int32_t> read(n_used, 0);
    ggml_backend_tensor_get_async(emu.get(), io.ids, read.data(), 0, ggml_nbytes(io.ids));
    ggml_backend_synchronize(emu.get());
    require(read != ids && counters().d2h_bytes == moved, "nothing is read from it");
    set("EMU_LOST_AFTER_GRAPHS", "0");
    require(ggml_backend_graph_compute(emu.get(), graph.graph) == GGML_STATUS_FAILED, "it does not come back");
    require(Buffer(ggml_backend_alloc_buffer(emu.get(), 4096)) == nullptr, "no memory");
}

}  // namespace

int main() {
    require(emu_set("EMU_LAUNCH_US", "1") == EMU_NOT_REGISTERED, "nothing to set before registration");
    register_emulator();
    Reference reference;
#define RUN(scenario) run(#scenario, [&] { scenario(reference); })
#define RUN_ALONE(scenario) run(#scenario, [] { scenario(); })
    RUN(a_graph_may_be_destroyed_as_soon_as_it_is_submitted);
    RUN(ids_may_be_rewritten_in_queue_order);
    RUN(threads_share_the_link);
    RUN_ALONE(memory_ends_where_it_was_told_to);
    RUN_ALONE(fresh_memory_is_poisoned);
    RUN_ALONE(copies_stay_on_the_device);
    RUN(streams_wait_for_events);
    RUN(copies_between_streams_keep_order);
    RUN(a_cloned_buffer_type_is_the_devices);
    RUN(pinned_memory_is_host_memory);
    RUN(streams_come_and_go);
    RUN_ALONE(freeing_waits_for_the_queue);
    RUN(the_slow_host_computes_any_graph);
    RUN_ALONE(another_program_takes_memory);
    RUN_ALONE(allocations_are_refused_now_and_then);
    RUN(a_failed_graph_leaves_the_queue_usable);
    RUN_ALONE(a_lost_device_answers_nothing);
#undef RUN
#undef RUN_ALONE
    std::printf("all scenarios passed\n");
    return 0;
}
