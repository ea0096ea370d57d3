#include "mirror.h"

#include <cstring>
#include <unordered_map>
#include <unordered_set>

namespace hotcache {

namespace {

constexpr size_t alignment = 64;

const ggml_tensor * owner_of(const ggml_tensor * tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

bool on_host(const ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = owner_of(tensor)->buffer;
    return buffer == nullptr || ggml_backend_buffer_is_host(buffer);
}

// Twins of a graph's tensors; what already lies on the host is its own twin.
class Twins {
  public:
    explicit Twins(ggml_context * ctx) : ctx_(ctx) {}

    ggml_tensor * of(const ggml_tensor * tensor) {
        if (on_host(tensor)) { return const_cast<ggml_tensor *>(tensor); }
        const auto known = twins_.find(tensor);
        if (known != twins_.end()) { return known->second; }
        ggml_tensor * twin = ggml_new_tensor(ctx_, tensor->type, GGML_MAX_DIMS, tensor->ne);
        std::memcpy(twin->nb, tensor->nb, sizeof(twin->nb));
        std::memcpy(twin->op_params, tensor->op_params, sizeof(twin->op_params));
        ggml_set_name(twin, tensor->name);
        twin->flags = tensor->flags;
        twins_[tensor] = twin;
        if (tensor->view_src != nullptr) {
            twin->view_src = of(tensor->view_src);
            twin->view_offs = tensor->view_offs;
        } else {
            owners_.push_back(tensor);
        }
        return twin;
    }

    // Device tensors that are no views, in the order they were met.
    const std::vector<const ggml_tensor *> & owners() const { return owners_; }
    const std::unordered_map<const ggml_tensor *, ggml_tensor *> & all() const { return twins_; }

  private:
    ggml_context * ctx_;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> twins_;
    std::vector<const ggml_tensor *> owners_;
};

}  // namespace

ggml_status Mirror::compute(const ggml_cgraph & graph, ggml_backend_t owner, ggml_backend_t worker) {
    // A node, its sources, and what each of them is a view of.
    const auto n_nodes = static_cast<size_t>(graph.n_nodes);
    const ContextPtr context = make_context(n_nodes * 2 * (GGML_MAX_SRC + 1), n_nodes);
    Twins twins(context.get());
    ggml_cgraph * mirrored = ggml_new_graph_custom(context.get(), n_nodes, false);
    std::unordered_set<const ggml_tensor *> computed;
    std::unordered_set<const ggml_tensor *> read;
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        for (const ggml_tensor * src : node->src) {
            if (src != nullptr && computed.count(owner_of(src)) == 0) { read.insert(owner_of(src)); }
        }
        // A node written into another tensor leaves the rest of that tensor as it was.
        if (node->view_src != nullptr && computed.count(node->view_src) == 0) { read.insert(node->view_src); }
        computed.insert(owner_of(node));
        ggml_tensor * twin = twins.of(node);
        if (twin != node) {
            twin->op = node->op;
            for (int s = 0; s < GGML_MAX_SRC; ++s) { twin->src[s] = node->src[s] == nullptr ? nullptr : twins.of(node->src[s]); }
        }
        ggml_graph_add_node(mirrored, twin);
    }

    size_t needed_bytes = alignment;
    for (const ggml_tensor * tensor : twins.owners()) { needed_bytes += GGML_PAD(ggml_nbytes(tensor), alignment); }
    if (memory_.size() < needed_bytes) { memory_.resize(needed_bytes); }
    auto at = GGML_PAD(reinterpret_cast<uintptr_t>(memory_.data()), alignment);
    for (const ggml_tensor * tensor : twins.owners()) {
        ggml_tensor * twin = twins.of(tensor);
        twin->data = reinterpret_cast<void *>(at);
        at += GGML_PAD(ggml_nbytes(tensor), alignment);
        if (read.count(tensor) > 0) { ggml_backend_tensor_get_async(owner, tensor, twin->data, 0, ggml_nbytes(tensor)); }
    }
    for (const auto & [tensor, twin] : twins.all()) {
        if (twin->view_src != nullptr) { twin->data = static_cast<char *>(twin->view_src->data) + twin->view_offs; }
    }
    ggml_backend_synchronize(owner);
    const ggml_status status = ggml_backend_graph_compute(worker, mirrored);
    if (status != GGML_STATUS_SUCCESS) { return status; }
    for (const ggml_tensor * tensor : twins.owners()) {
        if (computed.count(tensor) == 0) { continue; }
        ggml_backend_tensor_set_async(owner, const_cast<ggml_tensor *>(tensor), twins.of(tensor)->data, 0,
                                      ggml_nbytes(tensor));
    }
    ggml_backend_synchronize(owner);
    return status;
}

}  // namespace hotcache
