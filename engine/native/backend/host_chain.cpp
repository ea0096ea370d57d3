#include "host_chain.h"

#include <algorithm>
#include <cstring>

namespace hotcache {

std::unique_ptr<HostChain> HostChain::build(const ggml_cgraph & graph, const RoutedFfn & ffn, int n_pairs,
                                            const WeightOf & weight_of, ggml_backend_t backend, bool checked,
                                            Scratch & scratch, HostRows & rows) {
    std::unique_ptr<HostChain> chain(new HostChain());
    const auto n_nodes = static_cast<size_t>(ffn.last - ffn.first + 1);
    chain->context_ = make_context(n_nodes + 2, n_nodes + 4);
    ggml_context * ctx = chain->context_.get();

    chain->one_token_ = ffn.n_tokens() == 1;
    const int64_t pairs_in_token = chain->one_token_ ? n_pairs : 1;
    const int64_t tokens = chain->one_token_ ? 1 : n_pairs;
    const int64_t x_rows = chain->one_token_ && ffn.x->ne[1] == 1 ? 1 : pairs_in_token;
    PairGraph & pairs = chain->pairs_;
    pairs.x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ffn.x->ne[0], x_rows, tokens);
    pairs.ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, pairs_in_token, tokens);
    if (!add_pair_nodes(ctx, graph, ffn, weight_of, checked ? backend : nullptr, pairs)) { return nullptr; }

    std::vector<ggml_tensor *> own = {pairs.x, pairs.ids};
    own.insert(own.end(), pairs.computed.begin(), pairs.computed.end());
    if (!scratch.place(own, backend) || !init_views(ctx)) { return nullptr; }
    chain->graph_ = ggml_new_graph_custom(ctx, n_nodes + 4, false);
    ggml_build_forward_expand(chain->graph_, pairs.out);
    chain->recipe_ = Recipe(graph, ffn);
    chain->scratch_ = &scratch;
    chain->scratch_generation_ = scratch.generation();
    chain->rows_ = &rows;
    const auto grow = [](auto & values, int64_t n) { values.resize(std::max(values.size(), static_cast<size_t>(n))); };
    grow(rows.slices, n_pairs);
    grow(rows.x, ggml_nelements(pairs.x));
    grow(rows.out, ggml_nelements(pairs.out));
    return chain;
}

ggml_status HostChain::start(ggml_backend_t backend, const RoutedFfn & ffn, const char * x,
                             const std::vector<Pair> & pairs) {
    const auto row = static_cast<size_t>(ffn.x->ne[0]);
    const bool shared_row = ffn.x->ne[1] == 1;
    const size_t n_rows = one_token_ && shared_row ? 1 : pairs.size();
    for (size_t i = 0; i < n_rows; ++i) {
        const char * src = x + pairs[i].token * ffn.x->nb[2] + (shared_row ? 0 : pairs[i].k * ffn.x->nb[1]);
        std::memcpy(rows_->x.data() + i * row, src, row * sizeof(float));
    }
    for (size_t i = 0; i < pairs.size(); ++i) { rows_->slices[i] = pairs[i].slice; }
    ggml_backend_tensor_set_async(backend, pairs_.x, rows_->x.data(), 0, ggml_nbytes(pairs_.x));
    ggml_backend_tensor_set_async(backend, pairs_.ids, rows_->slices.data(), 0, ggml_nbytes(pairs_.ids));
    return ggml_backend_graph_compute_async(backend, graph_);
}

void HostChain::fetch(ggml_backend_t backend) {
    ggml_backend_tensor_get_async(backend, pairs_.out, rows_->out.data(), 0, ggml_nbytes(pairs_.out));
}

void HostChain::scatter(const RoutedFfn & ffn, char * out, const std::vector<Pair> & pairs) const {
    const auto row = static_cast<size_t>(ffn.out->ne[0]);
    for (size_t i = 0; i < pairs.size(); ++i) {
        char * dst = out + pairs[i].token * ffn.out->nb[2] + pairs[i].k * ffn.out->nb[1];
        std::memcpy(dst, rows_->out.data() + i * row, row * sizeof(float));
    }
}

}  // namespace hotcache
