#include <algorithm>
#include <atomic>
#include <chrono>

#include "ahead_chain.h"
#include "data_path.h"
#include "device.h"
#include "device_chain.h"
#include "host_chain.h"
#include "inputs.h"
#include "mirror.h"
#include "streamer.h"

namespace hotcache {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool on_device(const ggml_tensor * tensor) {
    const ggml_tensor * owner = tensor->view_src != nullptr ? tensor->view_src : tensor;
    return owner->buffer != nullptr && !ggml_backend_buffer_is_host(owner->buffer) && tensor->data != nullptr;
}

bool lone_accelerator() {
    int accelerators = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        accelerators += type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU ? 1 : 0;
    }
    return accelerators == 1;
}

// Everything is queued on one stream, in the order it must happen: the scheduler's own backend of the fast device where
// it has shown itself by a copy, so that what comes before and after this split needs no waiting for.
class DevicePath final : public DataPath {
  public:
    DevicePath(Workers & workers, Promoter & promoter) : workers_(workers), promoter_(promoter), own_stream_(workers.fast.get()), streamer_(ggml_backend_get_device(workers.fast.get())) {
        done_.reset(ggml_backend_event_new(ggml_backend_get_device(own_stream_)));
        routed_.reset(ggml_backend_event_new(ggml_backend_get_device(own_stream_)));
        forget_chains();
    }

    bool reaches(const RoutedFfn & ffn) const override {
        return on_device(ffn.x) && on_device(ffn.ids) && on_device(ffn.out);
    }

    // The ids and the input then come down on a stream of their own, beside what is computed.
    bool start_ahead(const ggml_cgraph & graph, const RoutedFfn & ffn, const Layer & layer,
                     const std::vector<int32_t> & slots) override {
        if (borrowed_ == nullptr || routed_ == nullptr || ffn.first != 0 || ffn.n_tokens() != 1 ||
            ffn.ids->nb[0] != sizeof(int32_t) || overlap(ffn.x, ffn.out) || overlap(ffn.ids, ffn.out)) {
            return false;
        }
        AheadChain * chain = ahead_chains_.get(graph, ffn, static_cast<size_t>(ffn.n_used()), [&] {
            return AheadChain::build(graph, ffn, layer.hot_weights(), stream(), *hot_scratch_);
        });
        if (chain == nullptr) { return false; }
        ggml_backend_event_record(routed_.get(), stream());
        ggml_backend_event_wait(own_stream_, routed_.get());
        ahead_ = chain->start(stream(), ffn, slots) == GGML_STATUS_SUCCESS;
        return ahead_;
    }

    const std::vector<int32_t> & routing(const RoutedFfn & ffn, bool misses_likely) override {
        ggml_backend_t down = ahead_ ? own_stream_ : stream();
        raw_ids_.resize(ggml_nbytes(ffn.ids) / sizeof(int32_t));
        ggml_backend_tensor_get_async(down, ffn.ids, raw_ids_.data(), 0, ggml_nbytes(ffn.ids));
        x_is_here_ = misses_likely || ahead_;
        if (x_is_here_) { fetch_x(down, ffn); }
        ggml_backend_synchronize(down);
        unfinished_ = false;
        const size_t column = ffn.ids->nb[0] / sizeof(int32_t);
        const size_t row = ffn.ids->nb[1] / sizeof(int32_t);
        ids_.clear();
        for (size_t token = 0; token < static_cast<size_t>(ffn.n_tokens()); ++token) {
            for (size_t k = 0; k < static_cast<size_t>(ffn.n_used()); ++k) { ids_.push_back(raw_ids_[token * row + k * column]); }
        }
        return ids_;
    }

    bool run_split(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                   const std::vector<Pair> & hot_pairs, const std::vector<Pair> & cold_pairs, StepTimes & times,
                   ggml_status & status) override {
        DeviceChain * hot = nullptr;
        HostChain * cold = nullptr;
        if (!hot_pairs.empty() && !ahead_) {
            hot = hot_chains_.get(graph, ffn, hot_pairs.size(), [&] {
                return DeviceChain::build(graph, ffn, static_cast<int>(hot_pairs.size()), layer->hot_weights(), stream(),
                                          *hot_scratch_);
            });
            if (hot == nullptr) { return false; }
        }
        if (!cold_pairs.empty()) {
            cold = cold_chains_.get(graph, ffn, cold_pairs.size(), [&] {
                return HostChain::build(graph, ffn, static_cast<int>(cold_pairs.size()), layer->cold_weights(),
                                        workers_.cold.get(), false, *cold_scratch_, cold_rows_);
            });
            if (cold == nullptr) { return false; }
        }
        status = run_chains(graph, ffn, hot, hot_pairs, cold, cold_pairs, times);
        leave_unfinished();
        return true;
    }

    void reserve_prompt(const ggml_cgraph & graph, const RoutedFfn & ffn, size_t staging_bytes) override {
        streamer_.reserve(graph, ffn, staging_bytes, stream(), *hot_scratch_);
    }

    bool run_prompt(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                    const std::vector<Pair> & hot, const std::vector<Pair> & others, size_t staging_bytes,
                    int64_t & streamed_bytes, ggml_status & status) override {
        if (!streamer_.run(graph, ffn, *layer, hot, others, staging_bytes, stream(), *hot_scratch_, status)) { return false; }
        streamed_bytes = streamer_.streamed_bytes();
        ggml_cgraph tail = ggml_abi::slice(graph, ffn.last + 1, graph.n_nodes);
        if (status == GGML_STATUS_SUCCESS && tail.n_nodes > 0) { status = ggml_backend_graph_compute_async(stream(), &tail); }
        leave_unfinished();
        return true;
    }

    ggml_status run_cold(ggml_cgraph & graph) override {
        unfinished_ = false;
        return mirror_.compute(graph, stream(), workers_.cold.get());
    }

    void settle() override {
        if (unfinished_) { ggml_backend_event_synchronize(done_.get()); }
    }

    // With other accelerators about, results may be copied to one of them from outside any stream.
    bool on_borrowed_stream() const override { return borrowed_ != nullptr && lone_; }

    void forget_chains() override {
        hot_chains_.clear();
        ahead_chains_.clear();
        cold_chains_.clear();
        cold_scratch_ = std::make_unique<Scratch>(buffer_type_of(workers_.cold.get()));
        hot_scratch_ = std::make_unique<Scratch>(buffer_type_of(own_stream_));
    }

    bool copy_in(ggml_backend_t from, const ggml_tensor * src, ggml_tensor * dst, int64_t allocations) override {
        if (ggml_backend_get_device(from) != ggml_backend_get_device(own_stream_) || !on_device(src)) { return false; }
        if (borrowed_ != from) {
            settle();
            borrowed_ = from;
        }
        if (lone_) {
            // In the plugin's own memory, the original's place may be given to this split's outputs.
            inputs_.take(from, src, dst, allocations, !is_resident(src));
        } else {
            ggml_backend_tensor_copy_async(from, from, src, dst);
        }
        return true;
    }

    bool begin_split(const ggml_cgraph & graph, int64_t allocations) override {
        ahead_ = false;
        return inputs_.begin_split(stream(), graph, allocations);
    }

    void end_split() override {
        // A split that failed midway has left what was started ahead.
        if (ahead_ && !unfinished_) { ggml_backend_synchronize(stream()); }
        inputs_.end_split();
    }

  private:
    static ggml_backend_buffer_type_t buffer_type_of(ggml_backend_t backend) {
        return ggml_backend_dev_buffer_type(ggml_backend_get_device(backend));
    }

    ggml_backend_t stream() const { return borrowed_ != nullptr ? borrowed_ : own_stream_; }

    void fetch_x(ggml_backend_t down, const RoutedFfn & ffn) {
        x_.resize(ggml_nbytes(ffn.x));
        ggml_backend_tensor_get_async(down, ffn.x, x_.data(), 0, x_.size());
    }

    ggml_status run_chains(const ggml_cgraph & graph, const RoutedFfn & ffn, DeviceChain * hot,
                           const std::vector<Pair> & hot_pairs, HostChain * cold, const std::vector<Pair> & cold_pairs,
                           StepTimes & times) {
        ggml_status status = GGML_STATUS_SUCCESS;
        ggml_cgraph head = ggml_abi::slice(graph, 0, ffn.first);  // empty where pairs were started ahead
        if (head.n_nodes > 0) { status = ggml_backend_graph_compute_async(stream(), &head); }
        if (status != GGML_STATUS_SUCCESS) { return status; }

        // The output may have the input's memory: the input is read before anything is written.
        if (cold != nullptr && !x_is_here_) {
            const auto wait_start = Clock::now();
            fetch_x(stream(), ffn);
            ggml_backend_synchronize(stream());
            times.wait_s = seconds_since(wait_start);
        }
        const ggml_cgraph tail = ggml_abi::slice(graph, ffn.last + 1, graph.n_nodes);
        if (hot != nullptr && cold == nullptr) { return hot->start(stream(), ffn, ffn.x, hot_pairs, tail); }
        if (hot != nullptr) { status = hot->start(stream(), ffn, ffn.x, hot_pairs, ggml_abi::slice(graph, 0, 0)); }
        if (status == GGML_STATUS_SUCCESS && cold != nullptr) {
            const auto cold_start = Clock::now();
            const Promoter::Urgent urgent(promoter_);  // both would read the same memory
            status = cold->start(workers_.cold.get(), ffn, x_.data(), cold_pairs);
            if (status == GGML_STATUS_SUCCESS) { cold->fetch(workers_.cold.get()); }
            ggml_backend_synchronize(workers_.cold.get());
            times.cold_s = seconds_since(cold_start);
            if (status == GGML_STATUS_SUCCESS) { send_up(ffn, cold_pairs); }
        }
        if (status != GGML_STATUS_SUCCESS || tail.n_nodes == 0) { return status; }
        ggml_cgraph last = tail;
        return ggml_backend_graph_compute_async(stream(), &last);
    }

    // The cold rows to their places; neighbours travel together.
    void send_up(const RoutedFfn & ffn, const std::vector<Pair> & pairs) {
        const size_t row_bytes = static_cast<size_t>(ffn.out->ne[0]) * sizeof(float);
        const auto place = [&](const Pair & pair) { return static_cast<size_t>(pair.token * ffn.n_used() + pair.k); };
        for (size_t first = 0; first < pairs.size();) {
            size_t last = first + 1;
            while (last < pairs.size() && place(pairs[last]) == place(pairs[first]) + (last - first)) { ++last; }
            ggml_backend_tensor_set_async(stream(), ffn.out, cold_rows_.out.data() + first * static_cast<size_t>(ffn.out->ne[0]),
                                          place(pairs[first]) * row_bytes, (last - first) * row_bytes);
            first = last;
        }
    }

    void leave_unfinished() {
        if (done_ == nullptr) {
            ggml_backend_synchronize(stream());
            return;
        }
        ggml_backend_event_record(done_.get(), stream());
        unfinished_ = true;
    }

    Workers & workers_;
    Promoter & promoter_;
    ggml_backend_t own_stream_;
    ggml_backend_t borrowed_ = nullptr;  // the scheduler's backend of the same device; lives as long as the context
    const bool lone_ = lone_accelerator();
    EventPtr done_;
    EventPtr routed_;  // what computes ids and input
    bool ahead_ = false;  // the present split's pairs have been started
    std::atomic<bool> unfinished_{false};
    std::unique_ptr<Scratch> cold_scratch_;
    std::unique_ptr<Scratch> hot_scratch_;
    HostRows cold_rows_;
    ChainStore<DeviceChain> hot_chains_;
    ChainStore<AheadChain> ahead_chains_;
    ChainStore<HostChain> cold_chains_;
    Mirror mirror_;
    Inputs inputs_;
    Streamer streamer_;
    // On their way up or down until the stream has got this far.
    std::vector<int32_t> raw_ids_;
    std::vector<char> x_;
    std::vector<int32_t> ids_;
    bool x_is_here_ = false;
};

}  // namespace

std::unique_ptr<DataPath> make_device_path(Workers & workers, Promoter & promoter) {
    return std::make_unique<DevicePath>(workers, promoter);
}

}  // namespace hotcache
