#include <chrono>
#include <cstring>

#include "data_path.h"
#include "device_chain.h"
#include "host_chain.h"

namespace hotcache {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool on_host(const ggml_tensor * tensor) {
    const ggml_tensor * owner = tensor->view_src != nullptr ? tensor->view_src : tensor;
    return owner->buffer != nullptr && ggml_backend_buffer_is_host(owner->buffer) && tensor->data != nullptr;
}

class HostPath final : public DataPath {
  public:
    HostPath(Workers & workers, Promoter & promoter) : workers_(workers), promoter_(promoter) { forget_chains(); }

    bool reaches(const RoutedFfn & ffn) const override { return on_host(ffn.x) && on_host(ffn.ids) && on_host(ffn.out); }

    const std::vector<int32_t> & routing(const RoutedFfn & ffn, bool) override {
        ids_.resize(static_cast<size_t>(ffn.n_used()) * static_cast<size_t>(ffn.n_tokens()));
        auto out = ids_.begin();
        for (int token = 0; token < ffn.n_tokens(); ++token) {
            for (int k = 0; k < ffn.n_used(); ++k, ++out) {
                std::memcpy(&*out, static_cast<const char *>(ffn.ids->data) + token * ffn.ids->nb[1] + k * ffn.ids->nb[0],
                            sizeof(*out));
            }
        }
        return ids_;
    }

    // Nothing is written to ffn.out before both chains have read x: the allocator may have given them one memory.
    bool run_split(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                   const std::vector<Pair> & hot_pairs, const std::vector<Pair> & cold_pairs, StepTimes & times,
                   ggml_status & status) override {
        if (cold_pairs.empty() && ggml_backend_buft_is_host(buffer_type_of(workers_.fast))) {
            DeviceChain * whole = whole_chains_.get(graph, ffn, hot_pairs.size(), [&] {
                return DeviceChain::build(graph, ffn, static_cast<int>(hot_pairs.size()), layer->hot_weights(),
                                          workers_.fast.get(), *hot_scratch_);
            });
            if (whole != nullptr) {
                status = run_whole(graph, ffn, *whole, hot_pairs, times);
                return true;
            }
        }
        HostChain * hot = nullptr;
        HostChain * cold = nullptr;
        if (!hot_pairs.empty()) {
            hot = hot_chains_.get(graph, ffn, hot_pairs.size(), [&] {
                return HostChain::build(graph, ffn, static_cast<int>(hot_pairs.size()), layer->hot_weights(),
                                        workers_.fast.get(), true, *hot_scratch_, hot_rows_);
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
        return true;
    }

    void reserve_prompt(const ggml_cgraph &, const RoutedFfn &, size_t) override {}

    // llama.cpp's scheduler streams whole tensors where the activations are the host's; this backend is not asked then.
    bool run_prompt(const ggml_cgraph &, const RoutedFfn &, const std::shared_ptr<Layer> &, const std::vector<Pair> &,
                    const std::vector<Pair> &, size_t, int64_t &, ggml_status &) override {
        return false;
    }

    ggml_status run_cold(ggml_cgraph & graph) override {
        return ggml_backend_graph_compute(workers_.cold.get(), &graph);
    }

    void settle() override {}
    bool on_borrowed_stream() const override { return false; }

    void forget_chains() override {
        hot_chains_.clear();
        cold_chains_.clear();
        whole_chains_.clear();
        const auto scratch_for = [](const BackendPtr & worker) {
            return worker == nullptr ? nullptr : std::make_unique<Scratch>(buffer_type_of(worker));
        };
        cold_scratch_ = scratch_for(workers_.cold);
        hot_scratch_ = scratch_for(workers_.fast);
    }

    bool copy_in(ggml_backend_t, const ggml_tensor *, ggml_tensor *, int64_t) override { return false; }
    bool start_ahead(const ggml_cgraph &, const RoutedFfn &, const Layer &, const std::vector<int32_t> &) override {
        return false;
    }
    bool begin_split(const ggml_cgraph &, int64_t) override { return true; }
    void end_split() override {}

  private:
    static ggml_backend_buffer_type_t buffer_type_of(const BackendPtr & worker) {
        return ggml_backend_dev_buffer_type(ggml_backend_get_device(worker.get()));
    }

    // The fast device works in host memory and has every expert: nothing to gather, to join or to scatter.
    ggml_status run_whole(const ggml_cgraph & graph, const RoutedFfn & ffn, DeviceChain & chain,
                          const std::vector<Pair> & pairs, StepTimes & times) {
        ggml_cgraph head = ggml_abi::slice(graph, 0, ffn.first);
        ggml_status status = head.n_nodes == 0 ? GGML_STATUS_SUCCESS : run_cold(head);
        if (status != GGML_STATUS_SUCCESS) { return status; }
        const auto start = Clock::now();
        const ggml_cgraph tail = ggml_abi::slice(graph, ffn.last + 1, graph.n_nodes);
        status = chain.start(workers_.fast.get(), ffn, ffn.x, pairs, tail);
        ggml_backend_synchronize(workers_.fast.get());
        times.hot_s = seconds_since(start);
        return status;
    }

    ggml_status run_chains(const ggml_cgraph & graph, const RoutedFfn & ffn, HostChain * hot,
                           const std::vector<Pair> & hot_pairs, HostChain * cold, const std::vector<Pair> & cold_pairs,
                           StepTimes & times) {
        ggml_cgraph head = ggml_abi::slice(graph, 0, ffn.first);
        ggml_status status = head.n_nodes == 0 ? GGML_STATUS_SUCCESS : run_cold(head);
        if (status != GGML_STATUS_SUCCESS) { return status; }

        const char * x = static_cast<const char *>(ffn.x->data);
        const auto start = Clock::now();
        if (hot != nullptr) {
            status = hot->start(workers_.fast.get(), ffn, x, hot_pairs);
            if (status == GGML_STATUS_SUCCESS) { hot->fetch(workers_.fast.get()); }
        }
        if (status == GGML_STATUS_SUCCESS && cold != nullptr) {
            const auto cold_start = Clock::now();
            const Promoter::Urgent urgent(promoter_);  // both would read the same memory
            status = cold->start(workers_.cold.get(), ffn, x, cold_pairs);
            if (status == GGML_STATUS_SUCCESS) { cold->fetch(workers_.cold.get()); }
            ggml_backend_synchronize(workers_.cold.get());
            times.cold_s = seconds_since(cold_start);
        }
        if (hot != nullptr) {
            const auto wait_start = Clock::now();
            ggml_backend_synchronize(workers_.fast.get());
            times.wait_s = seconds_since(wait_start);
            times.hot_s = seconds_since(start);
        }
        if (status != GGML_STATUS_SUCCESS) { return status; }
        char * out = static_cast<char *>(ffn.out->data);
        if (hot != nullptr) { hot->scatter(ffn, out, hot_pairs); }
        if (cold != nullptr) { cold->scatter(ffn, out, cold_pairs); }

        ggml_cgraph tail = ggml_abi::slice(graph, ffn.last + 1, graph.n_nodes);
        return tail.n_nodes == 0 ? status : ggml_backend_graph_compute(workers_.tail.get(), &tail);
    }

    Workers & workers_;
    Promoter & promoter_;
    std::unique_ptr<Scratch> cold_scratch_;
    std::unique_ptr<Scratch> hot_scratch_;
    HostRows cold_rows_;
    HostRows hot_rows_;
    ChainStore<HostChain> hot_chains_;
    ChainStore<HostChain> cold_chains_;
    ChainStore<DeviceChain> whole_chains_;
    std::vector<int32_t> ids_;
};

}  // namespace

std::unique_ptr<DataPath> make_host_path(Workers & workers, Promoter & promoter) {
    return std::make_unique<HostPath>(workers, promoter);
}

}  // namespace hotcache
