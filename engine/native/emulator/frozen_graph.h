// A graph as a driver keeps it: everything but the data copied at submission, so that the caller may rewrite or free
// its own graph at once. Storage is kept from one graph to the next; a small graph freezes without allocating.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../ggml_abi.h"

namespace emu {

class FrozenGraph {
public:
    void freeze(const ggml_cgraph & source);

    // Valid until the next freeze().
    ggml_cgraph & graph() { return graph_; }

private:
    struct Entry {
        const ggml_tensor * original;
        ggml_tensor * copy;
        uint64_t generation;  // entries of earlier graphs count as empty
    };

    ggml_tensor * copy_of(const ggml_tensor * original);
    ggml_tensor * new_tensor();
    Entry & slot_for(const ggml_tensor * original);
    void grow_table();
    void copy_use_counts(const ggml_cgraph & source);

    std::vector<std::unique_ptr<ggml_tensor[]>> chunks_;  // never moved: copies point at one another
    size_t n_tensors_ = 0;

    std::vector<Entry> table_;
    uint64_t generation_ = 0;

    std::vector<ggml_tensor *> nodes_;
    std::vector<uint32_t> used_slots_;
    std::vector<ggml_tensor *> keys_;
    std::vector<int32_t> use_counts_;
    ggml_cgraph graph_{};
};

}  // namespace emu
