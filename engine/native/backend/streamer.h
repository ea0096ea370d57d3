// Computes an FFN for a batch of prompt processing on the fast device: experts that have no slot pass through two staging
// buffers, one filling while the pairs of the other are computed. Only experts the batch routes to are copied.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "device_chain.h"

namespace hotcache {

class Layer;

struct EventFree {
    void operator()(ggml_backend_event_t event) const { ggml_backend_event_free(event); }
};
using EventPtr = std::unique_ptr<ggml_backend_event, EventFree>;

class Streamer {
  public:
    explicit Streamer(ggml_backend_dev_t device) : device_(device) {}

    // Takes the memory that batches like this one need, before slots take what is left.
    void reserve(const ggml_cgraph & graph, const RoutedFfn & ffn, size_t staging_bytes, ggml_backend_t stream,
                 Scratch & scratch);

    // Queues the nodes before the FFN and the pairs' rows of ffn.out on `stream`; `hot` have slots, the others' slices are expert numbers. False, with
    // nothing written, when there is no memory, or the device cannot order one stream after another. What was queued
    // reads this object's memory until `stream` is through.
    bool run(const ggml_cgraph & graph, const RoutedFfn & ffn, const Layer & layer, const std::vector<Pair> & hot,
             std::vector<Pair> others, size_t staging_bytes, ggml_backend_t stream, Scratch & scratch,
             ggml_status & status);

    int64_t streamed_bytes() const { return streamed_bytes_; }  // by the last run

  private:
    struct Stage {
        BufferPtr buffer;
        ContextPtr context;
        std::vector<ggml_tensor *> weights;  // parallel to the FFN's
        EventPtr filled;
        EventPtr computed;
    };
    // Pairs that one chain computes, and the experts it needs in a stage: none for those that have slots.
    struct Part {
        std::vector<Pair> pairs;
        std::vector<int32_t> experts;
        std::unique_ptr<DeviceChain> chain;
    };

    bool prepare(const RoutedFfn & ffn, size_t staging_bytes);
    bool lay_out(Stage & stage, const RoutedFfn & ffn);
    WeightOf weights_of(const Stage & stage, const RoutedFfn & ffn) const;
    std::vector<Part> divide(const std::vector<Pair> & hot, std::vector<Pair> others) const;
    void fill(Stage & stage, const RoutedFfn & ffn, const std::vector<int32_t> & experts);
    const ggml_tensor * input(const RoutedFfn & ffn, ggml_backend_t stream);

    ggml_backend_dev_t device_;
    BackendPtr copy_stream_;
    std::array<Stage, 2> stages_;
    int experts_in_stage_ = 0;
    std::vector<Part> parts_;  // of the last run
    ContextPtr input_context_;
    BufferPtr input_buffer_;
    int64_t streamed_bytes_ = 0;
};

}  // namespace hotcache
