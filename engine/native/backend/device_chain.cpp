#include "device_chain.h"

#include <algorithm>

namespace hotcache {

std::unique_ptr<DeviceChain> DeviceChain::build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                                const WeightOf & weight_of, ggml_backend_t backend, Scratch & scratch) {
    const bool whole = n_pairs == ffn.n_used() * ffn.n_tokens();
    const bool one_token = ffn.n_tokens() == 1;
    const bool shared_row = ffn.x->ne[1] == 1;
    if (!whole && !ggml_is_contiguous(ffn.x)) { return nullptr; }

    std::unique_ptr<DeviceChain> chain(new DeviceChain());
    const auto n_nodes = static_cast<size_t>(ffn.last - ffn.first + 1);
    chain->context_ = make_context(n_nodes + 12, n_nodes + 8);
    ggml_context * ctx = chain->context_.get();
    PairGraph & pairs = chain->pairs_;
    chain->x_rows_ = ffn.x->ne[1];
    chain->gathers_ = !whole && !(one_token && shared_row);

    const int64_t n_control = whole ? n_pairs : 3 * static_cast<int64_t>(n_pairs);
    chain->control_ = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_control);
    const auto part = [&](int i) { return ggml_view_1d(ctx, chain->control_, n_pairs, i * n_pairs * sizeof(int32_t)); };
    std::vector<ggml_tensor *> own = {chain->control_};
    if (whole || !chain->gathers_) {
        chain->x_ = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ffn.x->ne[0], ffn.x->ne[1], ffn.x->ne[2]);
        std::copy(std::begin(ffn.x->nb), std::end(ffn.x->nb), std::begin(chain->x_->nb));
        pairs.x = chain->x_;
    } else {
        chain->x_ = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ffn.x->ne[0], ffn.x->ne[1] * ffn.x->ne[2]);
        ggml_tensor * gathered = ggml_get_rows(ctx, chain->x_, part(1));
        if (!ggml_backend_supports_op(backend, gathered)) { return nullptr; }
        own.push_back(gathered);
        pairs.x = ggml_reshape_3d(ctx, gathered, ffn.x->ne[0], one_token ? n_pairs : 1, one_token ? 1 : n_pairs);
    }
    const int64_t pairs_in_token = whole ? ffn.n_used() : one_token ? n_pairs : 1;
    pairs.ids = ggml_reshape_2d(ctx, whole ? chain->control_ : part(0), pairs_in_token, n_pairs / pairs_in_token);
    if (!add_pair_nodes(ctx, graph, ffn, weight_of, backend, pairs)) { return nullptr; }

    own.insert(own.end(), pairs.computed.begin(), pairs.computed.end());
    ggml_tensor * last = pairs.out;
    if (whole) {
        own.pop_back();  // written straight to ffn.out
    } else {
        chain->target_ = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ffn.out->ne[0], ffn.out->ne[1] * ffn.out->ne[2]);
        ggml_tensor * rows = ggml_reshape_2d(ctx, pairs.out, ffn.out->ne[0], n_pairs);
        chain->written_ = last = ggml_set_rows(ctx, chain->target_, rows, part(2));
        if (!ggml_backend_supports_op(backend, last)) { return nullptr; }
    }
    // Views of what only stands for another tensor get their memory at each start.
    stand_for(chain->x_, ffn.x);
    if (whole) {
        stand_for(pairs.out, ffn.out);
    } else {
        stand_for(chain->target_, ffn.out);
    }
    if (!scratch.place(own, backend) || !init_views(ctx)) { return nullptr; }
    chain->graph_ = ggml_new_graph_custom(ctx, n_nodes + 8, false);
    ggml_build_forward_expand(chain->graph_, last);
    chain->recipe_ = Recipe(graph, ffn);
    chain->control_values_.resize(static_cast<size_t>(n_control));
    chain->scratch_ = &scratch;
    chain->scratch_generation_ = scratch.generation();
    return chain;
}

ggml_status DeviceChain::start(ggml_backend_t backend, const RoutedFfn & ffn, const ggml_tensor * x,
                               const std::vector<Pair> & pairs, const ggml_cgraph & rest) {
    stand_for(x_, x);
    if (whole()) {
        stand_for(pairs_.out, ffn.out);
    } else {
        stand_for(target_, ffn.out);
        stand_for(written_, ffn.out);
    }
    const size_t n = pairs.size();
    for (size_t i = 0; i < n; ++i) {
        control_values_[i] = pairs[i].slice;
        if (whole()) { continue; }
        const int row = pairs[i].token * ffn.n_used() + pairs[i].k;
        control_values_[n + i] = x_rows_ == 1 ? pairs[i].token : row;
        control_values_[2 * n + i] = row;
    }
    ggml_backend_tensor_set_async(backend, control_, control_values_.data(), 0, ggml_nbytes(control_));
    nodes_.assign(graph_->nodes, graph_->nodes + graph_->n_nodes);
    nodes_.insert(nodes_.end(), rest.nodes, rest.nodes + rest.n_nodes);
    // With the use counts of the graph that `rest` is from: this chain's own nodes are not for fusing.
    ggml_cgraph both = ggml_abi::slice(rest, 0, 0);
    both.nodes = nodes_.data();
    both.n_nodes = static_cast<int>(nodes_.size());
    return ggml_backend_graph_compute_async(backend, &both);
}

}  // namespace hotcache
