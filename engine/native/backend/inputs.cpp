#include "inputs.h"

#include <algorithm>

namespace hotcache {

void Inputs::take(ggml_backend_t stream, const ggml_tensor * src, ggml_tensor * dst, int64_t allocations) {
    if (allocations != allocations_) {
        inputs_.clear();
        borrowed_.clear();
        allocations_ = allocations;
    }
    const auto [found, is_new] = inputs_.try_emplace(dst);
    Input & input = found->second;
    if (!is_new && input.use == Use::unknown) { input.use = input.reads == 1 ? Use::single : Use::shared; }
    input.reads = 0;
    input.stands_in = input.use == Use::single;
    if (!input.stands_in) {
        ggml_backend_tensor_copy_async(stream, stream, src, dst);
        return;
    }
    borrowed_.push_back({dst, dst->data, dst->buffer});
    dst->data = src->data;
    dst->buffer = src->view_src != nullptr ? src->view_src->buffer : src->buffer;
}

bool Inputs::begin_split(const ggml_cgraph & graph) {
    bool all_here = true;
    // Through a view its own memory is read, or written to.
    const auto forbid = [&](const ggml_tensor * viewed) {
        const auto found = inputs_.find(viewed);
        if (found == inputs_.end()) { return; }
        found->second.use = Use::shared;
        all_here = all_here && !found->second.stands_in;
    };
    read_.clear();
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if (node->view_src != nullptr) { forbid(node->view_src); }
        for (const ggml_tensor * src : node->src) {
            if (src == nullptr) { break; }
            if (src->view_src != nullptr) { forbid(src->view_src); }
            const auto found = inputs_.find(src);
            if (found != inputs_.end()) { read_.push_back(&found->second); }
        }
    }
    std::sort(read_.begin(), read_.end());
    read_.erase(std::unique(read_.begin(), read_.end()), read_.end());
    for (Input * input : read_) {
        if (++input->reads == 1) { continue; }
        input->use = Use::shared;
        all_here = all_here && !input->stands_in;
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
