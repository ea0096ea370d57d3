// The expert tensors llama.cpp has loaded into the plugin's memory, by routed FFN. Guarded by its owner's lock.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml_abi.h"

namespace hotcache {

// The expert tensors of one routed FFN, as known from loading.
struct Family {
    std::vector<const ggml_tensor *> weights;
    int layer = -1;  // from the GGUF tensor name
    int n_expert = 0;
    int64_t expert_bytes = 0;  // of one expert in all matrices
};

class ExpertRegistry {
  public:
    // An expert tensor was given memory in `buffer`; other tensors are ignored.
    void add(ggml_backend_buffer_t buffer, const ggml_tensor * weight);
    // All memory of `buffer` goes; its expert tensors.
    std::set<const ggml_tensor *> remove(ggml_backend_buffer_t buffer);
    bool knows(ggml_backend_buffer_t buffer) const { return weights_.count(buffer) > 0; }

    // In the order of the layers.
    std::vector<Family> families() const;

    // While a model loads: llama.cpp would keep this weight in host memory.
    void would_hold(const ggml_tensor * weight);
    // Memory was taken for weights: what is asked from now on is about another model.
    void loaded() { loading_ = false; }
    // Of the model loaded last: are there more layers whose experts lie on the host than layers that lie there whole?
    bool dense_part_elsewhere() const;

  private:
    // What was true when the memory was given: a tensor itself is not looked at again, it may be gone before its buffer.
    struct Known {
        int layer;
        std::string kind;  // a layer may have two sets
        int n_expert;
        int64_t slice_bytes;
    };

    std::unordered_map<ggml_backend_buffer_t, std::map<const ggml_tensor *, Known>> weights_;
    bool loading_ = false;
    std::set<int> expert_layers_;
    std::set<int> dense_layers_;
};

// llama.cpp names a layer's tensors "blk.<layer>.…"; -1 for anything else.
int layer_number(const ggml_tensor * weight);

}  // namespace hotcache
