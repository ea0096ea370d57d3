#include "inputs.h"

#include <algorithm>

#include "pair_graph.h"

namespace hotcache {

void Inputs::forget_unless(ggml_backend_t stream, int64_t allocations) {
    if (allocations == allocations_) { return; }
    for (const Pending & pending : pending_) { ggml_backend_tensor_copy_async(stream, stream, pending.src, pending.dst); }
    pending_.clear();
    inputs_.clear();
    read_.clear();
    next_part_ = nullptr;
    allocations_ = allocations;
}

void Inputs::take(ggml_backend_t stream, const ggml_tensor * src, ggml_tensor * dst, int64_t allocations, bool lasting) {
    forget_unless(stream, allocations);
    const auto [found, is_new] = inputs_.try_emplace(dst);
    Input & input = found->second;
    if (!is_new && input.use == Use::unknown) {
        ++input.evaluations;
        if (input.reads != 1) { input.use = Use::shared; }
        if (input.reads == 1 && input.evaluations == 2) { input.use = Use::single; }
    }
    if (!lasting) { input.use = Use::shared; }
    input.reads = 0;
    input.left_out = input.use == Use::single;
    if (input.left_out) {
        pending_.push_back({src, dst, &input});
    } else {
        ggml_backend_tensor_copy_async(stream, stream, src, dst);
    }
}

bool Inputs::begin_split(ggml_backend_t stream, const ggml_cgraph & graph, int64_t allocations) {
    forget_unless(stream, allocations);
    for (const Pending & pending : pending_) {
        if (pending.input->reader == graph.nodes && pending.input->reader_nodes == graph.n_nodes) {
            borrowed_.push_back({pending.dst, pending.dst->data, pending.dst->buffer});
            stand_for(pending.dst, pending.src);
        } else {
            // Not the split it was left out for, or a part of it after which an observer may look at the copy.
            ggml_backend_tensor_copy_async(stream, stream, pending.src, pending.dst);
            pending.input->left_out = false;
        }
    }
    pending_.clear();
    // Whoever cuts splits looks at what their nodes were computed from.
    if (graph.nodes == next_part_) {
        for (Input * input : read_) { input->use = Use::shared; }
    }
    next_part_ = graph.nodes + graph.n_nodes;
    return note_reads(graph);
}

bool Inputs::note_reads(const ggml_cgraph & graph) {
    bool all_here = true;
    // Through a view its own memory is read, or written to.
    const auto forbid = [&](const ggml_tensor * viewed) {
        const auto found = inputs_.find(viewed);
        if (found == inputs_.end()) { return; }
        found->second.use = Use::shared;
        all_here = all_here && !found->second.left_out;
    };
    read_.clear();
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if (node->view_src != nullptr) { forbid(node->view_src); }
        for (const ggml_tensor * src : node->src) {
            if (src == nullptr) { continue; }
            if (src->view_src != nullptr) { forbid(src->view_src); }
            const auto found = inputs_.find(src);
            if (found != inputs_.end()) { read_.push_back(&found->second); }
        }
    }
    std::sort(read_.begin(), read_.end());
    read_.erase(std::unique(read_.begin(), read_.end()), read_.end());
    for (Input * input : read_) {
        if (++input->reads == 1) {
            input->reader = graph.nodes;
            input->reader_nodes = graph.n_nodes;
        } else {
            input->use = Use::shared;
            all_here = all_here && !input->left_out;
        }
    }
    return all_here;
}

void Inputs::end_split() {
    for (const Memory & memory : borrowed_) {
        memory.tensor->data = memory.data;
        memory.tensor->buffer = memory.buffer;
    }
    borrowed_.clear();
}

}  // namespace hotcache
