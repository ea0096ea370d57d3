// The inputs of splits, which the scheduler hands over as copies in the fast device's own memory.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ggml_abi.h"

namespace hotcache {

// A copy costs the device a launch, and three of them come with each layer. Where one split alone reads a copy it is
// left out: the copy's tensor points at the original while that split is computed. The stream keeps the order, so
// nobody writes to the original before the split has read it; after the split it may be overwritten.
class Inputs {
  public:
    // The next split is to find `src` in `dst`. Queued on `stream`, which all of the device's work stands on.
    // `allocations`: changes with every graph that is given memory; what was learnt is about the graph before then.
    // `lasting`: the original keeps its content until the split is computed.
    void take(ggml_backend_t stream, const ggml_tensor * src, ggml_tensor * dst, int64_t allocations, bool lasting);

    // A split begins, or a part of one where an observer cuts it. False when it reads a copy that was left out for
    // another: its content is gone.
    bool begin_split(ggml_backend_t stream, const ggml_cgraph & graph, int64_t allocations);

    // What the split reads has been queued: the copies' tensors point at their own memory again.
    void end_split();

  private:
    enum class Use {
        unknown,  // not all splits that may read it have been seen
        single,   // one split reads it, seen twice: an evaluation may be broken off; and nobody writes to it
        shared,
    };
    struct Input {
        Use use = Use::unknown;
        int evaluations = 0;    // in a row, in which one split read it
        int reads = 0;          // splits that have read it since it was handed over
        bool left_out = false;  // when it was last handed over
        ggml_tensor ** reader = nullptr;  // the nodes of the split that reads it
        int reader_nodes = 0;
    };
    struct Pending {
        const ggml_tensor * src;
        ggml_tensor * dst;
        Input * input;
    };
    struct Memory {
        ggml_tensor * tensor;
        void * data;
        ggml_backend_buffer_t buffer;
    };

    void forget_unless(ggml_backend_t stream, int64_t allocations);
    bool note_reads(const ggml_cgraph & graph);

    int64_t allocations_ = -1;
    std::unordered_map<const ggml_tensor *, Input> inputs_;
    std::vector<Pending> pending_;   // left out for the split that comes next
    std::vector<Input *> read_;      // by the last split, or part of one
    ggml_tensor ** next_part_ = nullptr;  // where that ended: the rest of a split that an observer cuts begins there
    std::vector<Memory> borrowed_;   // what the copies' tensors are to point at again
};

}  // namespace hotcache
