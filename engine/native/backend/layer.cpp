#include "layer.h"

#include <algorithm>
#include <cstdio>

namespace hotcache {

namespace {

// llama.cpp names a layer's tensors "blk.<layer>.…"; -1 for anything else.
int layer_index(const ggml_tensor * weight) {
    int index = -1;
    return std::sscanf(ggml_get_name(weight), "blk.%d.", &index) == 1 ? index : -1;
}

}  // namespace

Layer::Layer(const RoutedFfn & ffn, int n_slots, ggml_backend_buffer_type_t fast_buft)
    : table(0, 0), weights_(ffn.weights), index_(layer_index(ffn.key())) {
    for (const ggml_tensor * w : weights_) { expert_bytes_ += static_cast<int64_t>(expert_slice_bytes(w)); }
    int wanted = std::min(n_slots, ffn.n_expert());
    while (wanted > 0 && !allocate(wanted, fast_buft)) { wanted /= 2; }
    if (wanted < std::min(n_slots, ffn.n_expert())) {
        ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: layer %d: room for %d of %d slots\n", index_, wanted, n_slots);
    }
    n_slots_ = wanted;
    table = SlotTable(ffn.n_expert(), n_slots_);
}

bool Layer::allocate(int n_slots, ggml_backend_buffer_type_t fast_buft) {
    context_ = make_context(weights_.size());
    slots_.clear();
    for (const ggml_tensor * w : weights_) {
        const bool bias = w->ne[2] == 1;
        slots_.push_back(bias ? ggml_new_tensor_2d(context_.get(), w->type, w->ne[0], n_slots)
                              : ggml_new_tensor_3d(context_.get(), w->type, w->ne[0], w->ne[1], n_slots));
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), fast_buft));
    if (buffer_ == nullptr) { return false; }
    // Kernels may read the padding behind the last slice; it must not hold NaNs.
    ggml_backend_buffer_clear(buffer_.get(), 0);
    return true;
}

ggml_tensor * Layer::slots_of(const ggml_tensor * weight) const {
    const auto at = std::find(weights_.begin(), weights_.end(), weight);
    return at == weights_.end() ? nullptr : slots_[static_cast<size_t>(at - weights_.begin())];
}

int64_t Layer::copy(const Promotion & promotion) {
    for (size_t i = 0; i < weights_.size(); ++i) {
        const size_t slice = expert_slice_bytes(weights_[i]);
        const char * src = static_cast<const char *>(weights_[i]->data) + static_cast<size_t>(promotion.expert) * slice;
        ggml_backend_tensor_set(slots_[i], src, static_cast<size_t>(promotion.slot) * slice, slice);
    }
    return expert_bytes_;
}

void Layer::release() {
    buffer_.reset();
    context_.reset();
    slots_.clear();
    n_slots_ = 0;
}

}  // namespace hotcache
