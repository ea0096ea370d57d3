#include "expert_registry.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "routed_ffn.h"

namespace hotcache {

namespace {

// GGUF names expert tensors "blk.7.ffn_up_exps.weight", "….bias"; a layer may have a second set, "…_chexps". The scheduler's
// copies of a tensor begin with a backend's name; an adapter's parts end in "….lora_a" and "….lora_b".
bool is_expert_tensor(const ggml_tensor * weight) {
    const char * name = ggml_get_name(weight);
    return weight->op == GGML_OP_NONE && layer_number(weight) >= 0 && std::strstr(name, "exps.") != nullptr &&
           std::strstr(name, ".lora_") == nullptr;
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

void ExpertRegistry::add(ggml_backend_buffer_t buffer, const ggml_tensor * weight) {
    if (!is_expert_tensor(weight)) { return; }
    const bool bias = weight->ne[2] == 1;
    weights_[buffer][weight] = {layer_number(weight), kind_of(weight), static_cast<int>(bias ? weight->ne[1] : weight->ne[2]),
                                static_cast<int64_t>(expert_slice_bytes(weight))};
}

std::set<const ggml_tensor *> ExpertRegistry::remove(ggml_backend_buffer_t buffer) {
    std::set<const ggml_tensor *> gone;
    const auto found = weights_.find(buffer);
    if (found == weights_.end()) { return gone; }
    for (const auto & [weight, known] : found->second) { gone.insert(weight); }
    weights_.erase(found);
    return gone;
}

std::vector<Family> ExpertRegistry::families() const {
    // Two models have layers of the same number; each has buffers of its own.
    std::map<std::pair<int, std::string>, std::map<ggml_backend_buffer_t, Family>> by_layer;
    for (const auto & [buffer, weights] : weights_) {
        for (const auto & [weight, known] : weights) {
            Family & family = by_layer[{known.layer, known.kind}][buffer];
            family.layer = known.layer;
            family.n_expert = known.n_expert;
            family.expert_bytes += known.slice_bytes;
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
