#include "routed_ffn.h"

#include <algorithm>

namespace hotcache {

namespace {

// As a weight: the scheduler may keep a copy of one in memory of the same type, and reuse that memory.
bool lies_in(const ggml_tensor * weight, ggml_backend_buffer_type_t buft) {
    return weight->buffer != nullptr && weight->buffer->buft == buft &&
           weight->buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

// A slice along the rows of a per-pair tensor: how llama.cpp takes gate and up out of a fused product.
bool is_row_slice(const ggml_tensor * view) {
    const ggml_tensor * whole = view->src[0];
    return view->op == GGML_OP_VIEW && whole != nullptr && view->ne[0] < whole->ne[0] && view->ne[1] == whole->ne[1] &&
           view->ne[2] == whole->ne[2] && view->nb[0] == whole->nb[0] && view->nb[1] == whole->nb[1] &&
           view->nb[2] == whole->nb[2];
}

// Grows a RoutedFfn node by node from the first expert product.
class Builder {
  public:
    explicit Builder(ggml_backend_buffer_type_t expert_buft) : expert_buft_(expert_buft) {}

    bool start(const ggml_tensor * product) {
        ffn_.x = product->src[1];
        ffn_.ids = product->src[2];
        return accept(product);
    }

    // True when `node` belongs to the pairs' own computation.
    bool accept(const ggml_tensor * node) {
        if (!computes_pairs(node)) { return false; }
        nodes_.push_back(node);
        return true;
    }

    const RoutedFfn & ffn() const { return ffn_; }
    const std::vector<const ggml_tensor *> & nodes() const { return nodes_; }
    int products() const { return products_; }

  private:
    bool mapped(const ggml_tensor * tensor) const {
        return std::find(nodes_.begin(), nodes_.end(), tensor) != nodes_.end();
    }

    bool computes_pairs(const ggml_tensor * node) {
        if (node->type != GGML_TYPE_F32 || node->ne[3] != 1 || node->ne[1] != ffn_.ids->ne[0] ||
            node->ne[2] != ffn_.ids->ne[1]) {
            return false;
        }
        const ggml_tensor * a = node->src[0];
        const ggml_tensor * b = node->src[1];
        switch (node->op) {
            case GGML_OP_MUL_MAT_ID:
                if (!lies_in(a, expert_buft_) || node->src[2] != ffn_.ids || (b != ffn_.x && !mapped(b))) { return false; }
                ++products_;
                return use_weight(a);
            case GGML_OP_ADD_ID:
                return mapped(a) && lies_in(b, expert_buft_) && node->src[2] == ffn_.ids && use_weight(b);
            case GGML_OP_VIEW:
                return mapped(a) && is_row_slice(node);
            case GGML_OP_GLU:
            case GGML_OP_MUL:
                return mapped(a) && (b == nullptr || (mapped(b) && ggml_are_same_shape(a, b)));
            default:
                return is_pair_op(node) && mapped(a) && b == nullptr;
        }
    }

    bool use_weight(const ggml_tensor * weight) {
        const bool bias = weight->ne[2] == 1;
        const int64_t n_expert = ffn_.weights.empty() ? weight->ne[2] : ffn_.weights.front()->ne[2];
        // One expert alone cannot be told from a bias, and has nothing to choose from.
        if (n_expert < 2 || (bias ? weight->ne[1] : weight->ne[2]) != n_expert || weight->ne[3] != 1 ||
            !ggml_is_contiguous(weight)) {
            return false;
        }
        if (std::find(ffn_.weights.begin(), ffn_.weights.end(), weight) == ffn_.weights.end()) {
            ffn_.weights.push_back(weight);
        }
        return true;
    }

    ggml_backend_buffer_type_t expert_buft_;
    RoutedFfn ffn_;
    std::vector<const ggml_tensor *> nodes_;
    int products_ = 0;
};

// Nobody but nodes of the region may read a node other than `last`: its values for all pairs exist in neither tier.
bool closed(const ggml_cgraph & graph, const RoutedFfn & ffn) {
    for (int i = ffn.first; i < ffn.last; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) { return false; }
        int readers = 0;
        for (int j = i + 1; j <= ffn.last; ++j) {
            for (const ggml_tensor * src : graph.nodes[j]->src) { readers += src == node ? 1 : 0; }
        }
        if (readers != ggml_abi::use_count(graph, node)) { return false; }
    }
    return true;
}

}  // namespace

bool is_pair_op(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_GLU:
        case GGML_OP_UNARY:
        case GGML_OP_SQR:
        case GGML_OP_CLAMP:
        case GGML_OP_SCALE:
            return true;
        default:
            return false;
    }
}

std::optional<RoutedFfn> recognise(const ggml_cgraph & graph, ggml_backend_buffer_type_t expert_buft) {
    int first = 0;
    while (first < graph.n_nodes && graph.nodes[first]->op != GGML_OP_MUL_MAT_ID) { ++first; }
    if (first == graph.n_nodes) { return std::nullopt; }

    Builder builder(expert_buft);
    if (!builder.start(graph.nodes[first])) { return std::nullopt; }
    int last = first;
    while (last + 1 < graph.n_nodes && builder.accept(graph.nodes[last + 1])) { ++last; }

    RoutedFfn ffn = builder.ffn();
    ffn.first = first;
    ffn.last = last;
    ffn.out = graph.nodes[last];
    for (int i = last + 1; i < graph.n_nodes; ++i) {
        if (graph.nodes[i]->op == GGML_OP_MUL_MAT_ID) { return std::nullopt; }
    }
    const bool shapes = ffn.ids->type == GGML_TYPE_I32 && ffn.x->type == GGML_TYPE_F32 &&
                        ffn.x->nb[0] == sizeof(float) && ffn.x->ne[2] == ffn.ids->ne[1] && ffn.x->ne[3] == 1 &&
                        (ffn.x->ne[1] == 1 || ffn.x->ne[1] == ffn.ids->ne[0]) && ggml_is_contiguous(ffn.out);
    // The down product reads the activation; a region of gate and up alone has no single result.
    if (builder.products() < 2 || !shapes || !closed(graph, ffn)) { return std::nullopt; }
    return ffn;
}

}  // namespace hotcache
