#include "chain.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "ggml-alloc.h"

namespace hotcache {

ggml_backend_buffer_t Scratch::reserve(size_t size_bytes) {
    if (buffer_ == nullptr || ggml_backend_buffer_get_size(buffer_.get()) < size_bytes) {
        buffer_.reset();
        ++generation_;
        buffer_.reset(ggml_backend_buft_alloc_buffer(buft_, size_bytes));
    }
    return buffer_.get();
}

Chain::Step Chain::step_of(const ggml_tensor * node, const RoutedFfn & ffn) {
    Step step{node->op, {}, nullptr};
    std::memcpy(step.op_params.data(), node->op_params, sizeof(node->op_params));
    for (const ggml_tensor * src : node->src) {
        if (std::find(ffn.weights.begin(), ffn.weights.end(), src) != ffn.weights.end()) { step.weight = src; }
    }
    return step;
}

bool Chain::fits(const ggml_cgraph & graph, const RoutedFfn & ffn) const {
    if (scratch_generation_ != scratch_->generation() || ffn.last - ffn.first + 1 != static_cast<int>(steps_.size())) {
        return false;
    }
    for (size_t i = 0; i < steps_.size(); ++i) {
        const Step now = step_of(graph.nodes[ffn.first + static_cast<int>(i)], ffn);
        if (now.op != steps_[i].op || now.op_params != steps_[i].op_params || now.weight != steps_[i].weight) {
            return false;
        }
    }
    return true;
}

std::unique_ptr<Chain> Chain::build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                    const std::function<ggml_tensor *(const ggml_tensor *)> & weight_of,
                                    ggml_backend_t checked, Scratch & scratch) {
    std::unique_ptr<Chain> chain(new Chain());
    const int n_nodes = ffn.last - ffn.first + 1;
    chain->context_ = make_context(static_cast<size_t>(n_nodes) + 2, static_cast<size_t>(n_nodes) + 4);
    ggml_context * ctx = chain->context_.get();

    chain->one_token_ = ffn.n_tokens() == 1;
    const int64_t pairs_in_token = chain->one_token_ ? n_pairs : 1;
    const int64_t tokens = chain->one_token_ ? 1 : n_pairs;
    const int64_t x_rows = chain->one_token_ && ffn.x->ne[1] == 1 ? 1 : pairs_in_token;
    chain->x_ = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ffn.x->ne[0], x_rows, tokens);
    chain->ids_ = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, pairs_in_token, tokens);

    // Same operations and parameters as the scheduler's nodes, over fewer pairs and this tier's weights.
    std::unordered_map<const ggml_tensor *, ggml_tensor *> twin = {{ffn.x, chain->x_}, {ffn.ids, chain->ids_}};
    for (const ggml_tensor * w : ffn.weights) { twin[w] = weight_of(w); }
    std::vector<ggml_tensor *> own = {chain->x_, chain->ids_};
    for (int i = ffn.first; i <= ffn.last; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        chain->steps_.push_back(step_of(node, ffn));
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
            own.push_back(copy);
            if (checked != nullptr && !ggml_backend_supports_op(checked, copy)) { return nullptr; }
        }
        twin[node] = copy;
        chain->out_ = copy;
    }

    size_t needed_bytes = 0;
    const size_t alignment = ggml_backend_buft_get_alignment(scratch.buft());
    for (const ggml_tensor * t : own) {
        needed_bytes += GGML_PAD(ggml_backend_buft_get_alloc_size(scratch.buft(), t), alignment);
    }
    ggml_backend_buffer_t buffer = scratch.reserve(needed_bytes + alignment);
    if (buffer == nullptr) { return nullptr; }
    ggml_tallocr allocator = ggml_tallocr_new(buffer);
    for (ggml_tensor * t : own) {
        if (ggml_tallocr_alloc(&allocator, t) != GGML_STATUS_SUCCESS) { return nullptr; }
    }
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->view_src != nullptr && ggml_backend_view_init(t) != GGML_STATUS_SUCCESS) { return nullptr; }
    }
    chain->graph_ = ggml_new_graph_custom(ctx, static_cast<size_t>(n_nodes) + 4, false);
    ggml_build_forward_expand(chain->graph_, chain->out_);
    chain->scratch_ = &scratch;
    chain->scratch_generation_ = scratch.generation();
    const auto grow = [](auto & rows, int64_t n) { rows.resize(std::max(rows.size(), static_cast<size_t>(n))); };
    grow(scratch.slices, n_pairs);
    grow(scratch.x_rows, ggml_nelements(chain->x_));
    grow(scratch.out_rows, ggml_nelements(chain->out_));
    return chain;
}

ggml_status Chain::start(ggml_backend_t backend, const RoutedFfn & ffn, const std::vector<Pair> & pairs) {
    const size_t row = static_cast<size_t>(ffn.x->ne[0]);
    const bool shared_row = ffn.x->ne[1] == 1;
    const size_t n_rows = one_token_ && shared_row ? 1 : pairs.size();
    for (size_t i = 0; i < n_rows; ++i) {
        const char * src = static_cast<const char *>(ffn.x->data) + pairs[i].token * ffn.x->nb[2] +
                           (shared_row ? 0 : pairs[i].k * ffn.x->nb[1]);
        std::memcpy(scratch_->x_rows.data() + i * row, src, row * sizeof(float));
    }
    for (size_t i = 0; i < pairs.size(); ++i) { scratch_->slices[i] = pairs[i].slice; }
    ggml_backend_tensor_set_async(backend, x_, scratch_->x_rows.data(), 0, ggml_nbytes(x_));
    ggml_backend_tensor_set_async(backend, ids_, scratch_->slices.data(), 0, ggml_nbytes(ids_));
    return ggml_backend_graph_compute_async(backend, graph_);
}

void Chain::fetch(ggml_backend_t backend) {
    ggml_backend_tensor_get_async(backend, out_, scratch_->out_rows.data(), 0, ggml_nbytes(out_));
}

void Chain::scatter(const RoutedFfn & ffn, const std::vector<Pair> & pairs) const {
    const size_t row = static_cast<size_t>(ffn.out->ne[0]);
    for (size_t i = 0; i < pairs.size(); ++i) {
        char * dst = static_cast<char *>(ffn.out->data) + pairs[i].token * ffn.out->nb[2] + pairs[i].k * ffn.out->nb[1];
        std::memcpy(dst, scratch_->out_rows.data() + i * row, row * sizeof(float));
    }
}

}  // namespace hotcache
