#include "streamer.h"

#include <algorithm>
#include <tuple>

#include "ggml-alloc.h"
#include "layer.h"

namespace hotcache {

namespace {

// More pairs in one chain only cost memory for what lies between its operations.
constexpr size_t most_pairs = 512;

}  // namespace

bool Streamer::lay_out(Stage & stage, const RoutedFfn & ffn) {
    ContextPtr context = make_context(ffn.weights.size());
    std::vector<ggml_tensor *> weights;
    for (const ggml_tensor * w : ffn.weights) {
        weights.push_back(w->ne[2] == 1
                              ? ggml_new_tensor_2d(context.get(), w->type, w->ne[0], experts_in_stage_)
                              : ggml_new_tensor_3d(context.get(), w->type, w->ne[0], w->ne[1], experts_in_stage_));
    }
    ggml_tallocr allocator = ggml_tallocr_new(stage.buffer.get());
    const size_t alignment = ggml_backend_buffer_get_alignment(stage.buffer.get());
    size_t needed_bytes = alignment;
    for (const ggml_tensor * w : weights) {
        needed_bytes += GGML_PAD(ggml_backend_buffer_get_alloc_size(stage.buffer.get(), w), alignment);
    }
    if (needed_bytes > ggml_backend_buffer_get_size(stage.buffer.get())) { return false; }
    for (ggml_tensor * w : weights) {
        if (ggml_tallocr_alloc(&allocator, w) != GGML_STATUS_SUCCESS) { return false; }
    }
    stage.context = std::move(context);
    stage.weights = std::move(weights);
    return true;
}

bool Streamer::prepare(const RoutedFfn & ffn, size_t staging_bytes) {
    size_t expert_bytes = 0;
    for (const ggml_tensor * w : ffn.weights) { expert_bytes += expert_slice_bytes(w); }
    const size_t padding_bytes = (ffn.weights.size() + 1) * 4096;
    const size_t wanted_bytes = std::max(staging_bytes, expert_bytes + padding_bytes);
    if (copy_stream_ == nullptr) { copy_stream_.reset(ggml_backend_dev_init(device_, nullptr)); }
    if (copy_stream_ == nullptr) { return false; }
    experts_in_stage_ = static_cast<int>(
        std::min((wanted_bytes - padding_bytes) / expert_bytes, static_cast<size_t>(ffn.n_expert())));
    for (Stage & stage : stages_) {
        if (stage.filled == nullptr) { stage.filled.reset(ggml_backend_event_new(device_)); }
        if (stage.computed == nullptr) { stage.computed.reset(ggml_backend_event_new(device_)); }
        if (stage.filled == nullptr || stage.computed == nullptr) { return false; }
        if (stage.buffer == nullptr || ggml_backend_buffer_get_size(stage.buffer.get()) < wanted_bytes) {
            ggml_backend_synchronize(copy_stream_.get());
            stage.buffer.reset();
            stage.buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(device_), wanted_bytes));
            if (stage.buffer == nullptr) { return false; }
            stage.weights.clear();
        }
        // Kernels may read the padding behind the last slice: what lies there has to be numbers of this type.
        const auto same_type = [](const ggml_tensor * a, const ggml_tensor * b) { return a->type == b->type; };
        if (!std::equal(stage.weights.begin(), stage.weights.end(), ffn.weights.begin(), ffn.weights.end(), same_type)) {
            ggml_backend_buffer_clear(stage.buffer.get(), 0);
        }
        if (!lay_out(stage, ffn)) { return false; }
    }
    return true;
}

std::vector<Streamer::Part> Streamer::divide(const std::vector<Pair> & hot, std::vector<Pair> others) const {
    std::vector<Part> parts;
    for (size_t first = 0; first < hot.size(); first += most_pairs) {
        Part part;
        part.pairs.assign(hot.begin() + static_cast<long>(first),
                          hot.begin() + static_cast<long>(std::min(first + most_pairs, hot.size())));
        parts.push_back(std::move(part));
    }
    std::stable_sort(others.begin(), others.end(), [](const Pair & a, const Pair & b) { return a.slice < b.slice; });
    const size_t first_staged = parts.size();
    for (const Pair & pair : others) {
        const bool known = parts.size() > first_staged && parts.back().experts.back() == pair.slice;
        const bool has_room = parts.size() > first_staged && (known || static_cast<int>(parts.back().experts.size()) < experts_in_stage_);
        if (!has_room || (!known && parts.back().pairs.size() >= most_pairs)) { parts.emplace_back(); }
        Part & part = parts.back();
        if (part.experts.empty() || part.experts.back() != pair.slice) { part.experts.push_back(pair.slice); }
        part.pairs.push_back({pair.token, pair.k, static_cast<int32_t>(part.experts.size()) - 1});
    }
    for (Part & part : parts) {
        std::sort(part.pairs.begin(), part.pairs.end(), [](const Pair & a, const Pair & b) {
            return std::tie(a.token, a.k) < std::tie(b.token, b.k);
        });
    }
    return parts;
}

WeightOf Streamer::weights_of(const Stage & stage, const RoutedFfn & ffn) const {
    return [&stage, &ffn](const ggml_tensor * weight) {
        return stage.weights[static_cast<size_t>(std::find(ffn.weights.begin(), ffn.weights.end(), weight) - ffn.weights.begin())];
    };
}

void Streamer::reserve(const ggml_cgraph & graph, const RoutedFfn & ffn, size_t staging_bytes, ggml_backend_t stream,
                       Scratch & scratch) {
    const auto n_pairs = std::min(static_cast<size_t>(ffn.n_used()) * static_cast<size_t>(ffn.n_tokens()), most_pairs);
    // What cannot be had now cannot be had later either: `run` will say so.
    if (prepare(ffn, staging_bytes) && input(ffn, stream) != nullptr) {
        DeviceChain::build(graph, ffn, static_cast<int>(n_pairs), weights_of(stages_.front(), ffn), stream, scratch);
    }
}

// Neighbouring experts travel together.
void Streamer::fill(Stage & stage, const RoutedFfn & ffn, const std::vector<int32_t> & experts) {
    for (size_t i = 0; i < stage.weights.size(); ++i) {
        const ggml_tensor * weight = ffn.weights[i];
        const size_t slice = expert_slice_bytes(weight);
        for (size_t first = 0; first < experts.size();) {
            size_t last = first + 1;
            while (last < experts.size() && experts[last] == experts[first] + static_cast<int32_t>(last - first)) { ++last; }
            ggml_backend_tensor_set_async(copy_stream_.get(), stage.weights[i],
                                          static_cast<const char *>(weight->data) + static_cast<size_t>(experts[first]) * slice,
                                          first * slice, (last - first) * slice);
            first = last;
        }
        streamed_bytes_ += static_cast<int64_t>(experts.size() * slice);
    }
}

// The FFN's input, which several parts read: a copy where the output, written by the first of them, has its memory.
const ggml_tensor * Streamer::input(const RoutedFfn & ffn, ggml_backend_t stream) {
    if (!overlap(ffn.x, ffn.out)) { return ffn.x; }
    const size_t needed_bytes = ggml_nbytes(ffn.x);
    if (input_buffer_ == nullptr || ggml_backend_buffer_get_size(input_buffer_.get()) < needed_bytes) {
        ggml_backend_synchronize(stream);
        input_buffer_.reset();
        input_buffer_.reset(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(device_), needed_bytes));
        if (input_buffer_ == nullptr) { return nullptr; }
    }
    input_context_ = make_context(1);
    ggml_tensor * copy = ggml_dup_tensor(input_context_.get(), ffn.x);
    std::copy(std::begin(ffn.x->nb), std::end(ffn.x->nb), std::begin(copy->nb));
    if (ggml_backend_tensor_alloc(input_buffer_.get(), copy, ggml_backend_buffer_get_base(input_buffer_.get())) !=
        GGML_STATUS_SUCCESS) {
        return nullptr;
    }
    ggml_backend_tensor_copy_async(stream, stream, ffn.x, copy);
    return copy;
}

bool Streamer::run(const ggml_cgraph & graph, const RoutedFfn & ffn, const Layer & layer, const std::vector<Pair> & hot,
                   std::vector<Pair> others, size_t staging_bytes, ggml_backend_t stream, Scratch & scratch,
                   ggml_status & status) {
    streamed_bytes_ = 0;
    if (!prepare(ffn, staging_bytes)) { return false; }
    parts_ = divide(hot, std::move(others));
    // The largest first: the shared memory grows before anything is queued that would have to be waited for.
    std::vector<size_t> order(parts_.size());
    for (size_t i = 0; i < order.size(); ++i) { order[i] = i; }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return parts_[a].pairs.size() > parts_[b].pairs.size(); });
    std::vector<int> stage_of(parts_.size());
    int staged = 0;
    for (size_t i = 0; i < parts_.size(); ++i) { stage_of[i] = parts_[i].experts.empty() ? -1 : staged++ % 2; }
    for (size_t i : order) {
        const WeightOf weights = stage_of[i] < 0 ? layer.hot_weights()
                                                 : weights_of(stages_[static_cast<size_t>(stage_of[i])], ffn);
        parts_[i].chain = DeviceChain::build(graph, ffn, static_cast<int>(parts_[i].pairs.size()), weights, stream, scratch);
        if (parts_[i].chain == nullptr) { return false; }
    }
    ggml_cgraph head = ggml_abi::slice(graph, 0, ffn.first);
    status = head.n_nodes == 0 ? GGML_STATUS_SUCCESS : ggml_backend_graph_compute_async(stream, &head);
    const ggml_tensor * x = input(ffn, stream);
    if (x == nullptr) {
        // Computed twice, a node that writes over its own input would be wrong.
        status = GGML_STATUS_ALLOC_FAILED;
        return head.n_nodes > 0;
    }
    const ggml_cgraph nothing = ggml_abi::slice(graph, 0, 0);
    for (size_t i = 0; i < parts_.size() && status == GGML_STATUS_SUCCESS; ++i) {
        Part & part = parts_[i];
        if (stage_of[i] < 0) {
            status = part.chain->start(stream, ffn, x, part.pairs, nothing);
            continue;
        }
        Stage & stage = stages_[static_cast<size_t>(stage_of[i])];
        ggml_backend_event_wait(copy_stream_.get(), stage.computed.get());
        fill(stage, ffn, part.experts);
        ggml_backend_event_record(stage.filled.get(), copy_stream_.get());
        ggml_backend_event_wait(stream, stage.filled.get());
        status = part.chain->start(stream, ffn, x, part.pairs, nothing);
        ggml_backend_event_record(stage.computed.get(), stream);
    }
    return true;
}

}  // namespace hotcache
