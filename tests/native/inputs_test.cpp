// Inputs of splits: copied until one split alone is known to read them, then read where they lie; never stale.
#include "backend/inputs.h"

#include <cstring>
#include <memory>

#include "require.h"

namespace {

using hotcache::Inputs;

constexpr int64_t width = 8;

// An original and its copy in the CPU's memory, and graphs that read the copy.
class World {
  public:
    World() {
        backend_ = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
        context_ = ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead() * 8, nullptr, true});
        original = ggml_new_tensor_1d(context_, GGML_TYPE_F32, width);
        copy = ggml_new_tensor_1d(context_, GGML_TYPE_F32, width);
        first = reader(ggml_scale(context_, copy, 2.0F));
        second = reader(ggml_scale(context_, copy, 3.0F));
        viewing = reader(ggml_scale(context_, ggml_view_1d(context_, copy, width / 2, 0), 2.0F));
        writing = reader(ggml_scale_inplace(context_, copy, 2.0F));
        both = ggml_new_graph_custom(context_, 8, false);
        ggml_build_forward_expand(both, ggml_add(context_, ggml_scale(context_, copy, 2.0F), copy));
        other = reader(ggml_scale(context_, original, 2.0F));
        buffer_ = ggml_backend_alloc_ctx_tensors(context_, backend_);
        own_data = copy->data;
        write(1.0F);
    }
    ~World() {
        ggml_backend_buffer_free(buffer_);
        ggml_free(context_);
        ggml_backend_free(backend_);
    }
    World(const World &) = delete;
    World & operator=(const World &) = delete;

    void write(float value) {
        for (int64_t i = 0; i < width; ++i) { static_cast<float *>(original->data)[i] = value; }
    }
    float copied() const { return *static_cast<const float *>(copy->data); }

    void hand_over(Inputs & inputs, bool lasting = true) { inputs.take(backend_, original, copy, allocations, lasting); }

    // Whether the split finds its inputs; what it reads of the copy then is the original's.
    bool split(Inputs & inputs, const ggml_cgraph * graph) {
        const bool here = inputs.begin_split(backend_, *graph, allocations);
        if (here && graph->n_nodes > 0 && graph != other) { REQUIRE(copied() == *static_cast<const float *>(original->data)); }
        read_in_place = copy->data == original->data;
        inputs.end_split();
        REQUIRE(copy->data == own_data && copy->buffer == buffer_);
        return here;
    }

    // What an observer sees of the copy after the split.
    bool copy_is_true() const { return copied() == *static_cast<const float *>(original->data); }

    bool read_in_place = false;  // by the last split
    int64_t allocations = 1;

    ggml_tensor * original;
    ggml_tensor * copy;
    void * own_data;
    ggml_cgraph * first;
    ggml_cgraph * second;
    ggml_cgraph * viewing;
    ggml_cgraph * writing;
    ggml_cgraph * both;  // two nodes that read the copy
    ggml_cgraph * other;

  private:
    ggml_cgraph * reader(ggml_tensor * node) {
        ggml_cgraph * graph = ggml_new_graph_custom(context_, 8, false);
        ggml_build_forward_expand(graph, node);
        return graph;
    }

    ggml_backend_t backend_;
    ggml_context * context_;
    ggml_backend_buffer_t buffer_;
};

void one_reader_needs_no_copy() {
    World world;
    Inputs inputs;
    for (int evaluation = 0; evaluation < 4; ++evaluation) {
        world.write(static_cast<float>(10 + evaluation));
        world.hand_over(inputs);
        REQUIRE(world.split(inputs, world.first));
        REQUIRE(world.read_in_place == (evaluation > 1));
        REQUIRE(world.split(inputs, world.other));
        // The copy's own memory keeps what was copied last.
        REQUIRE(world.copied() == (evaluation == 0 ? 10.0F : 11.0F));
    }
}

void what_several_splits_read_is_copied() {
    World world;
    Inputs inputs;
    for (int evaluation = 0; evaluation < 4; ++evaluation) {
        world.write(static_cast<float>(10 + evaluation));
        world.hand_over(inputs);
        for (const ggml_cgraph * graph : {world.first, world.second}) {
            REQUIRE(world.split(inputs, graph));
            REQUIRE(!world.read_in_place);
        }
    }
}

void what_may_be_overwritten_is_copied() {
    World world;
    Inputs inputs;
    for (int evaluation = 0; evaluation < 3; ++evaluation) {
        world.hand_over(inputs, false);
        REQUIRE(world.split(inputs, world.first));
        REQUIRE(!world.read_in_place);
    }
}

void views_and_writers_get_a_copy() {
    for (const bool writes : {false, true}) {
        World world;
        Inputs inputs;
        for (int evaluation = 0; evaluation < 3; ++evaluation) {
            world.hand_over(inputs);
            REQUIRE(world.split(inputs, writes ? world.writing : world.viewing));
            REQUIRE(!world.read_in_place);
        }
    }
}

void what_nobody_read_is_copied() {
    World world;
    Inputs inputs;
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.other));
    world.write(5.0F);
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(!world.read_in_place);
}

// An observer has the split computed in parts and looks at what each node was computed from.
void an_observer_finds_what_was_read() {
    World world;
    Inputs inputs;
    ggml_cgraph part = *world.both;
    part.n_nodes = 1;
    ggml_cgraph rest = *world.both;
    rest.nodes += 1;
    rest.n_nodes -= 1;
    for (const bool observed : {false, false, false, true, true, false, true}) {
        world.write(world.copied() + 1.0F);
        world.hand_over(inputs);
        if (observed) {
            REQUIRE(world.split(inputs, &part) && world.copy_is_true());
            REQUIRE(world.split(inputs, &rest) && world.copy_is_true());
        } else {
            REQUIRE(world.split(inputs, world.both));
        }
    }
}

// From the first evaluation on, and only the first part reads the input.
void an_observer_who_was_there_before_finds_it_too() {
    World world;
    Inputs inputs;
    ggml_cgraph rest = *world.other;
    rest.nodes = world.first->nodes + world.first->n_nodes;
    for (int evaluation = 0; evaluation < 5; ++evaluation) {
        world.write(static_cast<float>(evaluation));
        world.hand_over(inputs);
        REQUIRE(world.split(inputs, world.first) && world.copy_is_true());
        rest.n_nodes = 0;
        REQUIRE(world.split(inputs, &rest));
    }
}

// One broken-off evaluation costs nothing.
void a_reader_seen_in_the_second_evaluation_is_in_time() {
    World world;
    Inputs inputs;
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    for (int evaluation = 0; evaluation < 3; ++evaluation) {
        world.hand_over(inputs);
        REQUIRE(world.split(inputs, world.first) && world.split(inputs, world.second));
    }
}

// Evaluations ended before their second reader: that one must not read what is left in the copy.
void a_reader_seen_late_fails_once() {
    World world;
    Inputs inputs;
    for (int evaluation = 0; evaluation < 2; ++evaluation) {
        world.hand_over(inputs);
        REQUIRE(world.split(inputs, world.first));
    }
    world.write(20.0F);
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(world.read_in_place);
    REQUIRE(!world.split(inputs, world.second));
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(!world.read_in_place);
    REQUIRE(world.split(inputs, world.second));
}

void another_graph_is_learnt_anew() {
    World world;
    Inputs inputs;
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    // Not handed over again: these are another graph's tensors at the same addresses.
    world.allocations = 2;
    REQUIRE(world.split(inputs, world.second));
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(!world.read_in_place);
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    world.hand_over(inputs);
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(world.read_in_place);
    // Another context's graph comes between the inputs of one split and its computation.
    world.write(3.0F);
    world.hand_over(inputs);
    world.allocations = 3;
    REQUIRE(world.split(inputs, world.first));
    REQUIRE(!world.read_in_place && world.copy_is_true());
}

}  // namespace

int main() {
    one_reader_needs_no_copy();
    what_several_splits_read_is_copied();
    what_may_be_overwritten_is_copied();
    an_observer_finds_what_was_read();
    an_observer_who_was_there_before_finds_it_too();
    a_reader_seen_in_the_second_evaluation_is_in_time();
    views_and_writers_get_a_copy();
    what_nobody_read_is_copied();
    a_reader_seen_late_fails_once();
    another_graph_is_learnt_anew();
}
