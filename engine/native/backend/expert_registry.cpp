#include "expert_registry.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "routed_ffn.h"

namespace hotcache {

namespace {

// GGUF names expert tensors "blk.7.ffn_up_exps.weight", "….bias"; a layer may have a second set, "…_chexps".
bool is_expert_tensor(const ggml_tensor * weight) {
    return weight->op == GGML_OP_NONE && std::strstr(ggml_get_name(weight), "exps.") != nullptr;
}

std::string kind_of(const ggml_tensor * weight) {
    const std::string name = ggml_get_name(weight);
    const size_t dot = name.rfind("exps.");
    const size_t from = name.rfind('_', dot);
    return from == std::string::npos ? name : name.substr(from, dot - from);
}

}  // namespace

int layer_number(const ggml_tensor * weight) {
    int index = -1;
    return std::sscanf(ggml_get_name(weight), "blk.%d.", &index) == 1 ? index : -1;
}

int Family::n_expert() const {
    const ggml_tensor * first = weights.front();
    return static_cast<int>(first->ne[2] > 1 ? first->ne[2] : first->ne[1]);
}

int64_t Family::expert_bytes() const {
    int64_t bytes = 0;
    for (const ggml_tensor * w : weights) { bytes += static_cast<int64_t>(expert_slice_bytes(w)); }
    return bytes;
}

void ExpertRegistry::add(ggml_backend_buffer_t buffer, const ggml_tensor * weight) {
    if (is_expert_tensor(weight)) { weights_[buffer].insert(weight); }
}

std::set<const ggml_tensor *> ExpertRegistry::remove(ggml_backend_buffer_t buffer) {
    const auto found = weights_.find(buffer);
    if (found == weights_.end()) { return {}; }
    std::set<const ggml_tensor *> gone = std::move(found->second);
    weights_.erase(found);
    return gone;
}

std::vector<Family> ExpertRegistry::families() const {
    // Two models have layers of the same number; each has buffers of its own.
    std::map<std::pair<int, std::string>, std::map<ggml_backend_buffer_t, Family>> by_layer;
    for (const auto & [buffer, weights] : weights_) {
        for (const ggml_tensor * weight : weights) {
            Family & family = by_layer[{layer_number(weight), kind_of(weight)}][buffer];
            family.layer = layer_number(weight);
            family.weights.push_back(weight);
        }
    }
    std::vector<Family> families;
    for (auto & [name, of_buffers] : by_layer) {
        for (auto & [buffer, family] : of_buffers) { families.push_back(std::move(family)); }
    }
    return families;
}

void ExpertRegistry::would_hold(const ggml_tensor * weight) {
    if (!loading_) {
        expert_layers_.clear();
        dense_layers_.clear();
        loading_ = true;
    }
    const int layer = layer_number(weight);
    if (layer < 0) { return; }
    if (is_expert_tensor(weight)) {
        expert_layers_.insert(layer);
    } else if (std::strstr(ggml_get_name(weight), "attn") != nullptr || std::strstr(ggml_get_name(weight), "ssm") != nullptr) {
        dense_layers_.insert(layer);
    }
}

bool ExpertRegistry::dense_part_elsewhere() const { return expert_layers_.size() > 2 * dense_layers_.size(); }

}  // namespace hotcache
