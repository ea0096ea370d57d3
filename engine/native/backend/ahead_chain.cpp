#include "ahead_chain.h"

#include <algorithm>

namespace hotcache {

std::unique_ptr<AheadChain> AheadChain::build(const ggml_cgraph & graph, const RoutedFfn & ffn,
                                              const WeightOf & weight_of, ggml_backend_t backend, Scratch & scratch) {
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(ggml_backend_get_device(backend));
    std::unique_ptr<AheadChain> chain(new AheadChain(buft));
    const auto n_nodes = static_cast<size_t>(ffn.last - ffn.first + 1);
    chain->context_ = make_context(n_nodes + 8, n_nodes + 4);
    ggml_context * ctx = chain->context_.get();
    PairGraph & pairs = chain->pairs_;
    chain->x_rows_ = ffn.x->ne[1];

    chain->slots_ = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, ffn.n_expert());
    chain->ids_ = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, ffn.n_used());
    ggml_tensor * chosen = ggml_get_rows(ctx, chain->slots_, chain->ids_);
    if (!ggml_backend_supports_op(backend, chosen)) { return nullptr; }
    pairs.ids = ggml_reshape_2d(ctx, chosen, ffn.n_used(), 1);
    pairs.x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ffn.x->ne[0], ffn.x->ne[1], ffn.x->ne[2]);
    std::copy(std::begin(ffn.x->nb), std::end(ffn.x->nb), std::begin(pairs.x->nb));
    if (!add_pair_nodes(ctx, graph, ffn, weight_of, backend, pairs)) { return nullptr; }

    std::vector<ggml_tensor *> own = {chosen};
    own.insert(own.end(), pairs.computed.begin(), pairs.computed.end());
    own.pop_back();  // written straight to ffn.out
    stand_for(chain->ids_, ffn.ids);
    stand_for(pairs.x, ffn.x);
    stand_for(pairs.out, ffn.out);
    if (!chain->slots_memory_.place({chain->slots_}, backend) || !scratch.place(own, backend) || !init_views(ctx)) {
        return nullptr;
    }
    chain->graph_ = ggml_new_graph_custom(ctx, n_nodes + 4, false);
    ggml_build_forward_expand(chain->graph_, pairs.out);
    chain->recipe_ = Recipe(graph, ffn);
    chain->scratch_ = &scratch;
    chain->scratch_generation_ = scratch.generation();
    return chain;
}

ggml_status AheadChain::start(ggml_backend_t backend, const RoutedFfn & ffn, const std::vector<int32_t> & slots) {
    stand_for(ids_, ffn.ids);
    stand_for(pairs_.x, ffn.x);
    stand_for(pairs_.out, ffn.out);
    if (slots != slot_values_) {
        // The last upload is long done: the host has waited for what came after it.
        slot_values_ = slots;
        ggml_backend_tensor_set_async(backend, slots_, slot_values_.data(), 0, ggml_nbytes(slots_));
    }
    return ggml_backend_graph_compute_async(backend, graph_);
}

}  // namespace hotcache
