#include "layer.h"

#include <algorithm>

#include "expert_registry.h"

namespace hotcache {

namespace {

// The layouts of its own that ggml's CPU backend keeps weights in.
std::vector<ggml_backend_buffer_type_t> packed_types(ggml_backend_dev_t cpu) {
    const auto list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    std::vector<ggml_backend_buffer_type_t> types;
    for (ggml_backend_buffer_type_t * t = list == nullptr ? nullptr : list(cpu); t != nullptr && *t != nullptr; ++t) {
        types.push_back(*t);
    }
    return types;
}

// The layout in which the CPU can compute expert products of this weight; null when it has none for it.
ggml_backend_buffer_type_t packed_type_for(const ggml_tensor * weight) {
    if (weight->ne[2] == 1) { return nullptr; }  // a bias
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    for (ggml_backend_buffer_type_t type : packed_types(cpu)) {
        const ContextPtr context = make_context(4);
        ggml_tensor * copy = ggml_dup_tensor(context.get(), weight);
        ggml_tensor * x = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, weight->ne[0], 1, 1);
        ggml_tensor * ids = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, 1, 1);
        ggml_tensor * product = ggml_mul_mat_id(context.get(), copy, x, ids);
        // The device decides by the buffer the weight lies in; an empty one will do, as llama.cpp itself asks.
        const BufferPtr empty(ggml_backend_buft_alloc_buffer(type, 0));
        copy->buffer = empty.get();
        if (copy->buffer != nullptr && ggml_backend_dev_supports_op(cpu, product)) { return type; }
    }
    return nullptr;
}

}  // namespace

Layer::Layer(const RoutedFfn & ffn, int n_slots, ggml_backend_buffer_type_t fast_buft)
    : table(0, 0), weights_(ffn.weights), index_(layer_number(ffn.key())) {
    for (const ggml_tensor * w : weights_) { expert_bytes_ += static_cast<int64_t>(expert_slice_bytes(w)); }
    const int asked = std::min(n_slots, ffn.n_expert());
    int wanted = asked;
    while (wanted > 0 && !allocate(wanted, fast_buft)) { wanted /= 2; }
    if (wanted < asked) {
        ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: layer %d: room for %d of %d slots\n", index_, wanted, asked);
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

size_t Layer::position_of(const ggml_tensor * weight) const {
    return static_cast<size_t>(std::find(weights_.begin(), weights_.end(), weight) - weights_.begin());
}

WeightOf Layer::hot_weights() const {
    return [this](const ggml_tensor * weight) { return slots_[position_of(weight)]; };
}

WeightOf Layer::cold_weights() const {
    return [this](const ggml_tensor * weight) {
        const size_t at = position_of(weight);
        const bool packed = !repacked_.empty() && repacked_[at] != nullptr;
        return packed ? repacked_[at] : const_cast<ggml_tensor *>(weight);
    };
}

void Layer::repack() {
    repacked_context_ = make_context(weights_.size());
    repacked_.clear();
    for (const ggml_tensor * weight : weights_) {
        ggml_backend_buffer_type_t buft = packed_type_for(weight);
        repacked_.push_back(nullptr);
        if (buft == nullptr) { continue; }
        ggml_tensor * copy = ggml_dup_tensor(repacked_context_.get(), weight);
        BufferPtr buffer(ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, copy)));
        if (buffer == nullptr) {
            ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: layer %d: no memory for a repacked copy\n", index_);
            continue;
        }
        if (ggml_backend_tensor_alloc(buffer.get(), copy, ggml_backend_buffer_get_base(buffer.get())) !=
            GGML_STATUS_SUCCESS) {
            continue;
        }
        ggml_backend_tensor_set(copy, weight->data, 0, ggml_nbytes(weight));
        repacked_.back() = copy;
        repacked_bytes_ += static_cast<int64_t>(ggml_backend_buffer_get_size(buffer.get()));
        repacked_buffers_.push_back(std::move(buffer));
    }
}

int64_t Layer::copy(const Promotion & promotion, size_t piece_bytes, const std::function<void()> & give_way) {
    for (size_t i = 0; i < weights_.size(); ++i) {
        const size_t slice = expert_slice_bytes(weights_[i]);
        const char * src = static_cast<const char *>(weights_[i]->data) + static_cast<size_t>(promotion.expert) * slice;
        const size_t slot_at = static_cast<size_t>(promotion.slot) * slice;
        for (size_t at = 0; at < slice; at += piece_bytes) {
            give_way();
            ggml_backend_tensor_set(slots_[i], src + at, slot_at + at, std::min(piece_bytes, slice - at));
        }
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
