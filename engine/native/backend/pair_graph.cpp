#include "pair_graph.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "ggml-alloc.h"

namespace hotcache {

bool Scratch::place(const std::vector<ggml_tensor *> & tensors, ggml_backend_t user) {
    const size_t alignment = ggml_backend_buft_get_alignment(buft_);
    size_t needed_bytes = alignment;
    for (const ggml_tensor * t : tensors) {
        needed_bytes += GGML_PAD(ggml_backend_buft_get_alloc_size(buft_, t), alignment);
    }
    if (buffer_ == nullptr || ggml_backend_buffer_get_size(buffer_.get()) < needed_bytes) {
        if (buffer_ != nullptr) { ggml_backend_synchronize(user); }
        buffer_.reset();
        ++generation_;
        buffer_.reset(ggml_backend_buft_alloc_buffer(buft_, needed_bytes));
        if (buffer_ == nullptr) { return false; }
    }
    ggml_tallocr allocator = ggml_tallocr_new(buffer_.get());
    return std::all_of(tensors.begin(), tensors.end(), [&](ggml_tensor * t) {
        return ggml_tallocr_alloc(&allocator, t) == GGML_STATUS_SUCCESS;
    });
}

Recipe::Step Recipe::step_of(const ggml_tensor * node, const RoutedFfn & ffn) {
    Step step{node->op, {}, nullptr};
    std::memcpy(step.op_params.data(), node->op_params, sizeof(node->op_params));
    for (const ggml_tensor * src : node->src) {
        if (std::find(ffn.weights.begin(), ffn.weights.end(), src) != ffn.weights.end()) { step.weight = src; }
    }
    return step;
}

Recipe::Recipe(const ggml_cgraph & graph, const RoutedFfn & ffn) {
    for (int i = ffn.first; i <= ffn.last; ++i) { steps_.push_back(step_of(graph.nodes[i], ffn)); }
}

bool Recipe::same(const ggml_cgraph & graph, const RoutedFfn & ffn) const {
    if (ffn.last - ffn.first + 1 != static_cast<int>(steps_.size())) { return false; }
    for (size_t i = 0; i < steps_.size(); ++i) {
        const Step now = step_of(graph.nodes[ffn.first + static_cast<int>(i)], ffn);
        if (now.op != steps_[i].op || now.op_params != steps_[i].op_params || now.weight != steps_[i].weight) {
            return false;
        }
    }
    return true;
}

bool add_pair_nodes(ggml_context * ctx, const ggml_cgraph & graph, const RoutedFfn & ffn, const WeightOf & weight_of,
                    ggml_backend_t checked, PairGraph & pairs) {
    const int64_t pairs_in_token = pairs.ids->ne[0];
    const int64_t tokens = pairs.ids->ne[1];
    std::unordered_map<const ggml_tensor *, ggml_tensor *> twin = {{ffn.x, pairs.x}, {ffn.ids, pairs.ids}};
    for (const ggml_tensor * w : ffn.weights) { twin[w] = weight_of(w); }
    for (int i = ffn.first; i <= ffn.last; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        ggml_tensor * copy = nullptr;
        if (node->op == GGML_OP_VIEW) {
            ggml_tensor * whole = twin.at(node->src[0]);
            const size_t offset = node->view_offs - node->src[0]->view_offs;
            copy = ggml_view_3d(ctx, whole, node->ne[0], pairs_in_token, tokens, whole->nb[1], whole->nb[2], offset);
        } else {
            copy = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, node->ne[0], pairs_in_token, tokens);
            copy->op = node->op;
            std::memcpy(copy->op_params, node->op_params, sizeof(copy->op_params));
            for (int s = 0; s < GGML_MAX_SRC; ++s) {
                copy->src[s] = node->src[s] == nullptr ? nullptr : twin.at(node->src[s]);
            }
            pairs.computed.push_back(copy);
            if (checked != nullptr && !ggml_backend_supports_op(checked, copy)) { return false; }
        }
        twin[node] = copy;
        pairs.out = copy;
    }
    return true;
}

void stand_for(ggml_tensor * here, const ggml_tensor * there) {
    here->data = there->data;
    here->buffer = there->view_src != nullptr ? there->view_src->buffer : there->buffer;
}

bool init_views(ggml_context * ctx) {
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->view_src != nullptr && ggml_backend_view_init(t) != GGML_STATUS_SUCCESS) { return false; }
    }
    return true;
}

}  // namespace hotcache
