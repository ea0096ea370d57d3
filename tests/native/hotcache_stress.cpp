// The whole plugin under stress, as llama.cpp uses it: ggml's scheduler splits a small model's graph between an
// accelerator, the cache and the CPU. Contexts compute at once while settings change, models come and go, and the
// device fails. Every result equals the CPU's, bit for bit, or is an error. Driven through public interfaces only.
//
// Prints one line a scenario; exits non-zero at the first surprise.
#include <array>
#include <atomic>
#include <map>
#include <optional>
#include <thread>

#include "emulator_harness.h"
#include "hotcache.h"

extern "C" ggml_backend_reg_t emulator_backend_init();  // the emulator's ggml_backend_init, renamed for this program

using namespace harness;

namespace {

constexpr int n_width = 64, n_inner = 32, n_experts = 12, n_routed = 3, n_layers = 3, graph_nodes = 256;

ggml_backend_dev_t cache_device() { return ggml_backend_dev_by_name("HOTCACHE"); }

// Where llama.cpp loads expert weights: the first buffer type of an ACCEL device.
ggml_backend_buffer_type_t expert_type() { return ggml_backend_dev_buffer_type(cache_device()); }

void set_cache(const char * key, const std::string & value) {
    std::array<char, 256> error{};
    require(hotcache_set(key, value.c_str(), error.data(), error.size()) == 0, std::string(key) + ": " + error.data());
}

std::vector<hotcache_layer> layers() {
    std::vector<hotcache_layer> found(hotcache_layers(nullptr, 0));
    found.resize(std::min(found.size(), hotcache_layers(found.data(), found.size())));
    return found;
}

int64_t total(int64_t hotcache_layer::*counter) {
    int64_t sum = 0;
    for (const hotcache_layer & layer : layers()) { sum += layer.*counter; }
    return sum;
}

// ---- a model of three layers: separate projections with a bias, fused ones, and experts named by the input

struct LayerWeights {
    ggml_tensor *norm, *router, *shared;
    ggml_tensor *gate, *up, *gate_up, *down, *bias;
};

class Model {
public:
    Model(ggml_backend_buffer_type_t dense_type, ggml_backend_buffer_type_t expert_type) {
        ggml_context * dense = dense_context_.get();
        ggml_context * experts = expert_context_.get();
        for (int i = 0; i < n_layers; ++i) {
            LayerWeights & w = layers_[static_cast<size_t>(i)];
            w.norm = ggml_new_tensor_1d(dense, GGML_TYPE_F32, n_width);
            w.router = ggml_new_tensor_2d(dense, GGML_TYPE_F32, n_width, n_experts);
            w.shared = ggml_new_tensor_2d(dense, GGML_TYPE_Q8_0, n_width, n_width);
            if (i == 1) {
                w.gate_up = named(ggml_new_tensor_3d(experts, GGML_TYPE_Q8_0, n_width, 2 * n_inner, n_experts), i, "gate_up");
            } else {
                w.gate = named(ggml_new_tensor_3d(experts, GGML_TYPE_Q4_0, n_width, n_inner, n_experts), i, "gate");
                w.up = named(ggml_new_tensor_3d(experts, GGML_TYPE_Q4_0, n_width, n_inner, n_experts), i, "up");
            }
            w.down = named(ggml_new_tensor_3d(experts, GGML_TYPE_F16, n_inner, n_width, n_experts), i, "down");
            if (i == 0) {
                w.bias = ggml_new_tensor_2d(experts, GGML_TYPE_F32, n_width, n_experts);
                ggml_set_name(w.bias, "blk.0.ffn_down_exps.bias");
            }
        }
        fill(dense, dense_buffer_, dense_type, 100);
        fill(experts, expert_buffer_, expert_type, 200);
    }

    const LayerWeights & layer(int i) const { return layers_[static_cast<size_t>(i)]; }

private:
    static ggml_tensor * named(ggml_tensor * tensor, int layer, const char * part) {
        ggml_format_name(tensor, "blk.%d.ffn_%s_exps.weight", layer, part);
        return tensor;
    }

    static void fill(ggml_context * context, Buffer & buffer, ggml_backend_buffer_type_t type, unsigned seed) {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context, type));
        require(buffer != nullptr, "memory for weights");
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (ggml_tensor * t = ggml_get_first_tensor(context); t != nullptr; t = ggml_get_next_tensor(context, t)) {
            Floats values = random_floats(static_cast<size_t>(ggml_nelements(t)), seed++);
            for (float & value : values) { value *= 0.2F; }
            Bytes data(ggml_nbytes(t));
            if (t->type == GGML_TYPE_F32) {
                std::memcpy(data.data(), values.data(), data.size());
            } else {
                ggml_quantize_chunk(t->type, values.data(), data.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
            }
            ggml_backend_tensor_set(t, data.data(), 0, data.size());
        }
    }

    Context dense_context_ = new_context();
    Context expert_context_ = new_context();
    Buffer dense_buffer_;
    Buffer expert_buffer_;
    std::array<LayerWeights, n_layers> layers_{};
};

// ---- one step of decoding or of a prompt

struct Step {
    int n_tokens;
    Floats x;
    std::vector<int32_t> ids;  // of the last layer: few experts often, one of them twice in a token now and then
};

Step random_step(std::mt19937 & rng) {
    constexpr std::array sizes = {1, 1, 1, 1, 2, 5, 31, 32, 40};
    Step step{sizes[rng() % sizes.size()], {}, {}};
    step.x = random_floats(static_cast<size_t>(step.n_tokens * n_width), static_cast<unsigned>(rng()));
    for (int i = 0; i < step.n_tokens * n_routed; ++i) {
        step.ids.push_back(static_cast<int32_t>(std::min(rng() % n_experts, rng() % n_experts)));
    }
    return step;
}

// The graph of a batch size, built once and computed many times while the scheduler keeps it.
struct Graph {
    Context context = Context(ggml_init({1024 * ggml_tensor_overhead() + ggml_graph_overhead_custom(graph_nodes, false),
                                         nullptr, true}));
    ggml_cgraph * nodes = ggml_new_graph_custom(context.get(), graph_nodes, false);
    ggml_tensor *x, *ids, *out;

    Graph(const Model & model, int n_tokens) {
        ggml_context * c = context.get();
        x = ggml_new_tensor_2d(c, GGML_TYPE_F32, n_width, n_tokens);
        ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, n_routed, n_tokens);
        ggml_set_input(x);
        ggml_set_input(ids);
        out = x;
        for (int i = 0; i < n_layers; ++i) { out = layer(model.layer(i), i + 1 == n_layers ? ids : nullptr); }
        ggml_set_output(out);
        ggml_build_forward_expand(nodes, out);
    }

private:
    // As llama.cpp builds it: the router's weights first, then the routed FFN, then what every token passes through.
    ggml_tensor * layer(const LayerWeights & w, ggml_tensor * given_ids) {
        ggml_context * c = context.get();
        const int64_t n_tokens = out->ne[1];
        ggml_tensor * normed = ggml_mul(c, ggml_rms_norm(c, out, 1e-6F), w.norm);
        ggml_tensor * probabilities = ggml_soft_max(c, ggml_mul_mat(c, w.router, normed));
        ggml_tensor * routed = given_ids;
        ggml_tensor * weights = nullptr;
        if (given_ids == nullptr) {
            routed = ggml_argsort_top_k(c, probabilities, n_routed);
            weights = ggml_get_rows(c, ggml_reshape_3d(c, probabilities, 1, n_experts, n_tokens), routed);
        } else {
            ggml_tensor * some = ggml_view_2d(c, probabilities, n_routed, n_tokens, probabilities->nb[1], 0);
            weights = ggml_reshape_3d(c, ggml_cont(c, some), 1, n_routed, n_tokens);
        }
        ggml_build_forward_expand(nodes, weights);

        ggml_tensor * row = ggml_reshape_3d(c, normed, n_width, 1, n_tokens);
        ggml_tensor * gate = nullptr;
        ggml_tensor * up = nullptr;
        if (w.gate_up != nullptr) {
            ggml_tensor * both = ggml_mul_mat_id(c, w.gate_up, row, routed);
            gate = ggml_view_3d(c, both, n_inner, n_routed, n_tokens, both->nb[1], both->nb[2], 0);
            up = ggml_view_3d(c, both, n_inner, n_routed, n_tokens, both->nb[1], both->nb[2], n_inner * both->nb[0]);
        } else {
            up = ggml_mul_mat_id(c, w.up, row, routed);
            gate = ggml_mul_mat_id(c, w.gate, row, routed);
        }
        ggml_tensor * pairs = ggml_mul_mat_id(c, w.down, ggml_swiglu_split(c, gate, up), routed);
        if (w.bias != nullptr) { pairs = ggml_add_id(c, pairs, w.bias, routed); }
        pairs = ggml_mul(c, pairs, weights);
        ggml_build_forward_expand(nodes, pairs);
        ggml_tensor * sum = nullptr;
        for (int64_t k = 0; k < n_routed; ++k) {
            ggml_tensor * part = ggml_view_2d(c, pairs, n_width, n_tokens, pairs->nb[2], static_cast<size_t>(k) * pairs->nb[1]);
            ggml_build_forward_expand(nodes, part);
            sum = sum == nullptr ? part : ggml_add(c, sum, part);
            ggml_build_forward_expand(nodes, sum);
        }
        return ggml_add(c, ggml_add(c, sum, ggml_mul_mat(c, w.shared, normed)), out);
    }
};

struct SchedulerFree {
    void operator()(ggml_backend_sched_t scheduler) const { ggml_backend_sched_free(scheduler); }
};

enum class Dense { on_host, on_device };

// What llama.cpp calls a context: backends of its own and a scheduler over them.
class Decoder {
public:
    // Stock: the CPU alone.
    explicit Decoder(const Model & model) : model_(model) { start(); }

    Decoder(const Model & model, Dense dense) : model_(model) {
        if (dense == Dense::on_device) { own_.push_back(backend_named("EMU0")); }
        own_.emplace_back(ggml_backend_dev_init(cache_device(), nullptr));
        require(own_.back() != nullptr, "a backend of the cache");
        set_threads(own_.back().get(), 1);
        start();
    }

    // Nothing when the computation failed.
    std::optional<Floats> operator()(const Step & step, bool observed = false) {
        Graph & graph = graph_of(step.n_tokens);
        ggml_backend_sched_set_eval_callback(scheduler_.get(), observed ? every_third : nullptr, &asked_);
        ggml_backend_tensor_set(graph.x, step.x.data(), 0, ggml_nbytes(graph.x));
        ggml_backend_tensor_set(graph.ids, step.ids.data(), 0, ggml_nbytes(graph.ids));
        if (ggml_backend_sched_graph_compute(scheduler_.get(), graph.nodes) != GGML_STATUS_SUCCESS) { return {}; }
        Floats out(static_cast<size_t>(ggml_nelements(graph.out)));
        ggml_backend_tensor_get(graph.out, out.data(), 0, ggml_nbytes(graph.out));
        return out;
    }

    int splits() const { return ggml_backend_sched_get_n_splits(scheduler_.get()); }

private:
    void start() {
        own_.push_back(backend_named("CPU"));
        set_threads(own_.back().get(), 1);  // the sanitizers cannot see into ggml's own thread pool
        std::vector<ggml_backend_t> backends;
        for (const Backend & backend : own_) { backends.push_back(backend.get()); }
        const auto count = static_cast<int>(backends.size());
        scheduler_.reset(ggml_backend_sched_new(backends.data(), nullptr, count, 2 * graph_nodes, false, true));
    }

    // A new batch size is a new graph; the same one again is computed as it stands, as llama.cpp does.
    Graph & graph_of(int n_tokens) {
        if (graph_ != nullptr && graph_->x->ne[1] == n_tokens && ++reused_ % 8 != 0) { return *graph_; }
        graph_ = std::make_unique<Graph>(model_, n_tokens);
        ggml_backend_sched_reset(scheduler_.get());
        require(ggml_backend_sched_alloc_graph(scheduler_.get(), graph_->nodes), "memory for the graph");
        return *graph_;
    }

    static bool every_third(ggml_tensor *, bool asking, void * asked) {
        return !asking || ++*static_cast<int *>(asked) % 3 == 0;
    }

    const Model & model_;
    std::vector<Backend> own_;
    std::unique_ptr<ggml_backend_sched, SchedulerFree> scheduler_;
    std::unique_ptr<Graph> graph_;
    int reused_ = 0;
    int asked_ = 0;
};

// The same weights three times: for stock, and for the cache beside either place of the dense part.
struct World {
    Model stock{ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("CPU")),
                ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("CPU"))};
    Model host{ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("CPU")), expert_type()};
    Model device{ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("EMU0")), expert_type()};

    const Model & with(Dense dense) const { return dense == Dense::on_device ? device : host; }
};

void decode(const World & world, Dense dense, unsigned seed, int steps) {
    Decoder stock(world.stock);
    Decoder cached(world.with(dense), dense);
    std::mt19937 rng(seed);
    for (int i = 0; i < steps; ++i) {
        const Step step = random_step(rng);
        const auto got = cached(step, rng() % 6 == 0);
        require(got.has_value() && same_bits(*got, *stock(step)), "step " + std::to_string(i) + " equals stock's");
    }
}

// ---- scenarios

void usual_settings() {
    for (const auto & [key, value] : {std::pair{"device", "EMU0"}, {"slots", "4"}, {"interval", "1"}, {"dwell", "0"},
                                      {"min_sightings", "1"}, {"promotions", "2"}, {"policy", "heat"}, {"guard", "0"},
                                      {"path", "auto"}, {"prefill", "auto"}, {"hysteresis", "1.25"}}) {
        set_cache(key, value);
    }
    hotcache_clear();
}

void one_context_hits_and_misses(const World & world, Dense dense, int steps) {
    usual_settings();
    decode(world, dense, 1, steps);
    require(layers().size() == n_layers, "every layer has slots");
    for (const hotcache_layer & layer : layers()) { require(layer.n_slots == 4, "as many as asked for"); }
    require(total(&hotcache_layer::hits) > steps, "hits");
    require(total(&hotcache_layer::misses) > steps, "misses");
    require(total(&hotcache_layer::promotions) > 4 * n_layers, "promotions");
}

void change_settings(const std::atomic<bool> & stop) {
    std::mt19937 rng(99);
    const auto one_of = [&](const std::vector<const char *> & values) { return values[rng() % values.size()]; };
    while (!stop) {
        switch (rng() % 12) {
            case 0: set_cache("slots", std::to_string(rng() % 14)); break;
            case 1: set_cache("policy", one_of({"lru", "heat", "static"})); break;
            case 2: set_cache("promotions", std::to_string(rng() % 5)); break;
            case 3: set_cache("interval", std::to_string(1 + rng() % 4)); break;
            case 4: hotcache_reset_counters(); break;
            case 5: hotcache_clear(); break;
            case 6: set_cache("path", one_of({"host", "device", "auto"})); break;
            case 7: set_cache("prefill", one_of({"scheduler", "cold", "stream", "auto"})); break;
            case 8: set_cache("guard", one_of({"0", "1"})); break;
            case 9: set_cache("reserve", one_of({"0", "1000000", "auto"})); break;
            case 10:
                require(hotcache_set("device", "no such device", nullptr, 0) != 0, "nonsense is refused");
                break;
            default: layers(); break;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

// Four contexts, and a model that comes and goes beside them with its buffers.
void contexts_compute_while_everything_changes(const World & world, int steps) {
    usual_settings();
    std::atomic<bool> stop{false};
    std::thread settings([&] { change_settings(stop); });
    std::thread visitors([&] {
        for (unsigned i = 0; !stop; ++i) {
            const World visiting;
            decode(visiting, i % 2 == 0 ? Dense::on_host : Dense::on_device, i, 4);
        }
    });
    std::vector<std::thread> contexts;
    for (unsigned i = 0; i < 4; ++i) {
        contexts.emplace_back([&, i] { decode(world, i % 2 == 0 ? Dense::on_host : Dense::on_device, 10 + i, steps); });
    }
    for (std::thread & context : contexts) { context.join(); }
    stop = true;
    settings.join();
    visitors.join();
}

// Pins that a failure left behind would keep every expert of a layer where it is.
void experts_still_move(const World & world, Dense dense) {
    set_cache("policy", "lru");
    set_cache("hysteresis", "1");
    std::map<int32_t, int64_t> evicted;
    for (const hotcache_layer & layer : layers()) { evicted[layer.layer] = layer.evictions; }
    require(evicted.size() == n_layers, "every layer has slots");
    decode(world, dense, 23, 50);
    for (const hotcache_layer & layer : layers()) {
        require(layer.evictions > evicted[layer.layer], "experts still move in every layer");
    }
}

void no_expert_of_that_number(const World & world, Dense dense) {
    usual_settings();
    Decoder stock(world.stock);
    Decoder cached(world.with(dense), dense);
    std::mt19937 rng(4);
    for (const int32_t id : {-1, n_experts, INT32_MIN, INT32_MAX}) {
        for (int i = 0; i < 8; ++i) {
            Step step = random_step(rng);
            while (step.n_tokens != 5) { step = random_step(rng); }
            require(same_bits(*cached(step), *stock(step)), "right before");
            step.ids.back() = id;
            require(!cached(step).has_value(), "an error, not a crash");
        }
    }
    experts_still_move(world, dense);
}

void refused_memory_means_fewer_slots(const World & world, int steps) {
    for (const char * every : {"1", "2", "3"}) {
        usual_settings();
        set("EMU_REFUSE_ALLOC_EVERY", every);
        decode(world, Dense::on_host, 7, steps);
        set("EMU_REFUSE_ALLOC_EVERY", "0");
        for (const hotcache_layer & layer : layers()) { require(layer.n_slots <= 4, "fewer or as many"); }
    }
    usual_settings();
    set("EMU_VRAM_STOLEN_MIB", "1000");
    decode(world, Dense::on_host, 8, steps);
    require(total(&hotcache_layer::slot_bytes) == 0, "no room, no slots");
    set("EMU_VRAM_STOLEN_MIB", "0");
}

// Right or an error, and right again when the fault is over. Returns how many steps failed.
int decode_with_faults(const World & world, Dense dense, unsigned seed, int steps) {
    Decoder stock(world.stock);
    Decoder cached(world.with(dense), dense);
    std::mt19937 rng(seed);
    int failed = 0;
    for (int i = 0; i < steps; ++i) {
        const Step step = random_step(rng);
        const auto got = cached(step);
        failed += got.has_value() ? 0 : 1;
        require(!got.has_value() || same_bits(*got, *stock(step)), "an error or the right answer");
    }
    return failed;
}

void failing_graphs_never_give_wrong_answers(const World & world, Dense dense, int steps) {
    usual_settings();
    for (const char * every : {"2", "7", "31"}) {
        set("EMU_FAIL_GRAPH_EVERY", every);
        decode_with_faults(world, dense, 21, steps);
        set("EMU_FAIL_GRAPH_EVERY", "0");
        decode(world, dense, 22, steps);
    }
    experts_still_move(world, dense);
}

// For good, so these come last. Results on the device are out of reach then; those on the host are right or errors.
void a_lost_device_never_gives_wrong_answers(const World & world, int steps) {
    usual_settings();
    set("EMU_LOST_AFTER_GRAPHS", "40");
    decode_with_faults(world, Dense::on_host, 31, steps);
    require(counters().failed_graphs > 0, "the device is gone");
    decode_with_faults(world, Dense::on_host, 32, steps);
    hotcache_clear();
    decode_with_faults(world, Dense::on_host, 33, steps);
    set_cache("slots", "0");
    decode(world, Dense::on_host, 34, steps);
}

}  // namespace

int main(int argc, char ** argv) {
    const int steps = argc > 1 ? std::atoi(argv[1]) : 100;
    ggml_backend_register(emulator_backend_init());
    ggml_backend_register(ggml_backend_init());
    {
        const World world;
#define RUN(scenario, ...) run(#scenario, [&] { scenario(world, ##__VA_ARGS__); })
        RUN(one_context_hits_and_misses, Dense::on_host, steps);
        RUN(one_context_hits_and_misses, Dense::on_device, steps);
        RUN(contexts_compute_while_everything_changes, steps);
        RUN(no_expert_of_that_number, Dense::on_host);
        RUN(no_expert_of_that_number, Dense::on_device);
        RUN(refused_memory_means_fewer_slots, steps / 4);
        RUN(failing_graphs_never_give_wrong_answers, Dense::on_host, steps / 4);
        RUN(failing_graphs_never_give_wrong_answers, Dense::on_device, steps / 4);
        RUN(a_lost_device_never_gives_wrong_answers, steps / 4);
#undef RUN
    }
    // The weights are gone, and their slots with them.
    require(layers().empty(), "no layer is left");
    std::printf("all scenarios passed\n");
    return 0;
}
