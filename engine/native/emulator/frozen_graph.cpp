#include "frozen_graph.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace emu {

namespace {

constexpr size_t chunk_tensors = 128;
constexpr size_t least_table_size = 256;  // table sizes are powers of two

size_t hash(const ggml_tensor * tensor) {
    return static_cast<size_t>((reinterpret_cast<uintptr_t>(tensor) >> 4) * 0x9E3779B97F4A7C15ULL >> 20);
}

}  // namespace

void FrozenGraph::freeze(const ggml_cgraph & source) {
    ++generation_;
    n_tensors_ = 0;
    if (table_.empty()) { table_.resize(least_table_size); }

    const auto n_nodes = static_cast<size_t>(source.n_nodes);
    nodes_.resize(n_nodes);
    for (size_t i = 0; i < n_nodes; ++i) { nodes_[i] = copy_of(source.nodes[i]); }
    for (size_t i = 0; i < n_nodes; ++i) {
        for (int s = 0; s < GGML_MAX_SRC; ++s) {
            const ggml_tensor * original = source.nodes[i]->src[s];
            if (original != nullptr) { nodes_[i]->src[s] = copy_of(original); }
        }
    }

    graph_ = {};
    graph_.n_nodes = source.n_nodes;
    graph_.nodes = nodes_.data();
    copy_use_counts(source);
}

// The copy of a tensor computed elsewhere keeps its data pointer and loses its sources, which nobody needs.
ggml_tensor * FrozenGraph::copy_of(const ggml_tensor * original) {
    Entry & found = slot_for(original);
    if (found.generation == generation_) { return found.copy; }
    ggml_tensor * copy = new_tensor();
    found = {original, copy, generation_};
    if (2 * n_tensors_ > table_.size()) { grow_table(); }
    std::memcpy(copy, original, sizeof(*copy));
    std::fill(std::begin(copy->src), std::end(copy->src), nullptr);
    if (original->view_src != nullptr) { copy->view_src = copy_of(original->view_src); }
    return copy;
}

ggml_tensor * FrozenGraph::new_tensor() {
    const size_t chunk = n_tensors_ / chunk_tensors;
    if (chunk == chunks_.size()) { chunks_.emplace_back(new ggml_tensor[chunk_tensors]); }
    return &chunks_[chunk][n_tensors_++ % chunk_tensors];
}

FrozenGraph::Entry & FrozenGraph::slot_for(const ggml_tensor * original) {
    const size_t mask = table_.size() - 1;
    size_t at = hash(original) & mask;
    while (table_[at].generation == generation_ && table_[at].original != original) { at = (at + 1) & mask; }
    return table_[at];
}

void FrozenGraph::grow_table() {
    std::vector<Entry> previous(2 * table_.size());
    previous.swap(table_);
    for (const Entry & entry : previous) {
        if (entry.generation == generation_) { slot_for(entry.original) = entry; }
    }
}

// The CPU backend fuses a node with its only reader, and "only" is a property of the graph that was submitted.
void FrozenGraph::copy_use_counts(const ggml_cgraph & source) {
    size_t size = 16;
    while (size < 2 * nodes_.size()) { size *= 2; }
    used_slots_.assign((size + 31) / 32, 0);
    keys_.resize(size);
    use_counts_.resize(size);
    for (size_t i = 0; i < nodes_.size(); ++i) {
        size_t at = (reinterpret_cast<uintptr_t>(nodes_[i]) >> 4) % size;
        while (((used_slots_[at / 32] >> (at % 32)) & 1U) != 0) { at = (at + 1) % size; }
        used_slots_[at / 32] |= 1U << (at % 32);
        keys_[at] = nodes_[i];
        use_counts_[at] = std::max(0, ggml_abi::use_count(source, source.nodes[i]));
    }
    graph_.visited_hash_set = {size, used_slots_.data(), keys_.data()};
    graph_.use_counts = use_counts_.data();
}

}  // namespace emu
