// How the tensors of a split are reached: in host memory, or in the fast device's own. One for each llama context.
#pragma once

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <vector>

#include "layer.h"
#include "pair_graph.h"
#include "promoter.h"

namespace hotcache {

// The devices that do the work, as the current settings name them.
struct Workers {
    BackendPtr cold;  // computes misses and whatever is not recognised
    BackendPtr tail;  // one thread: a few rows are not worth waking the others
    BackendPtr fast;  // null: there is no such device
};

struct StepTimes {
    double hot_s = 0.0;   // from starting the hot chain to its end; 0 where nobody waits for it
    double cold_s = 0.0;  // in the cold chain
    double wait_s = 0.0;  // waiting for the fast device with nothing else to do
};

class DataPath {
  public:
    virtual ~DataPath() = default;
    DataPath() = default;
    DataPath(const DataPath &) = delete;
    DataPath & operator=(const DataPath &) = delete;

    // Whether this path gets at the FFN's input, ids and output.
    virtual bool reaches(const RoutedFfn & ffn) const = 0;

    // May compute all pairs of a token on the fast device before the host knows them, from `slots`: by expert, each one
    // that may be read until the next call of `routing` has returned. True when it does: run_split leaves the hot pairs to
    // that.
    virtual bool start_ahead(const ggml_cgraph & graph, const RoutedFfn & ffn, const Layer & layer,
                             const std::vector<int32_t> & slots) = 0;

    // Expert ids [n_tokens][n_used] on the host, valid until the next call. Waits for what computes them, and by that
    // for everything this path has left unfinished. `misses_likely`: the input will probably be needed there too.
    virtual const std::vector<int32_t> & routing(const RoutedFfn & ffn, bool misses_likely) = 0;

    // Computes a whole split, each pair where its expert is. Unfinished work may remain on the fast device: slots that
    // were read stay untouched until `settled`. False when a chain cannot be had: nothing was computed then.
    virtual bool run_split(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                           const std::vector<Pair> & hot, const std::vector<Pair> & cold, StepTimes & times,
                           ggml_status & status) = 0;

    // Takes the memory that `run_prompt` will need for such batches.
    virtual void reserve_prompt(const ggml_cgraph & graph, const RoutedFfn & ffn, size_t staging_bytes) = 0;

    // Computes a whole split of prompt processing on the fast device, `others` from experts streamed to it. As run_split.
    virtual bool run_prompt(const ggml_cgraph & graph, const RoutedFfn & ffn, const std::shared_ptr<Layer> & layer,
                            const std::vector<Pair> & hot, const std::vector<Pair> & others, size_t staging_bytes,
                            int64_t & streamed_bytes, ggml_status & status) = 0;

    // Any nodes, in their order, on the cold device.
    virtual ggml_status run_cold(ggml_cgraph & graph) = 0;

    // Waits until nothing is unfinished. Any thread may call it.
    virtual void settle() = 0;

    // Whether what is unfinished stands on a stream of the scheduler's own, where all who read its results queue up.
    virtual bool on_borrowed_stream() const = 0;

    // Chains look into slots and scratch memory that may be gone.
    virtual void forget_chains() = 0;

    // The scheduler wants `src`, computed by `from`, copied to `dst`, an input of the next split. False: it has to do so
    // itself. `allocations`: changes with every graph that is given memory.
    virtual bool copy_in(ggml_backend_t from, const ggml_tensor * src, ggml_tensor * dst, int64_t allocations) = 0;

    // Around everything that computes a split or a part of one. False when its inputs are gone.
    virtual bool begin_split(const ggml_cgraph & graph, int64_t allocations) = 0;
    virtual void end_split() = 0;
};

// Chains of one kind by FFN and number of pairs. Two shapes: the pairs of one token, and pairs of several tokens.
template <typename Chain>
class ChainStore {
  public:
    // The chain for so many pairs, made by `build` when there is none that fits. Null when it cannot be built.
    template <typename Build>
    Chain * get(const ggml_cgraph & graph, const RoutedFfn & ffn, size_t n_pairs, Build build) {
        auto & of_ffn = chains_[ffn.key()];
        const long shape = ffn.n_tokens() == 1 ? static_cast<long>(n_pairs)
                                               : -static_cast<long>(n_pairs) - (ffn.n_tokens() * most_pairs);
        const auto known = of_ffn.find(shape);
        // Null stays null until the slots change: what could not be built once is not tried for every token.
        if (known != of_ffn.end() && (known->second == nullptr || known->second->fits(graph, ffn))) {
            return known->second.get();
        }
        // Batches of many sizes would otherwise pile up chains that are hardly used again.
        if (of_ffn.size() >= most_chains) { of_ffn.clear(); }
        return (of_ffn[shape] = build()).get();
    }

    void clear() { chains_.clear(); }

  private:
    static constexpr size_t most_chains = 64;
    static constexpr long most_pairs = 1L << 24;

    std::unordered_map<const ggml_tensor *, std::unordered_map<long, std::unique_ptr<Chain>>> chains_;
};

// Where the split's tensors are host memory, the CPU's or any that is like it.
std::unique_ptr<DataPath> make_host_path(Workers & workers, Promoter & promoter);

// Where they are the fast device's memory.
std::unique_ptr<DataPath> make_device_path(Workers & workers, Promoter & promoter);

}  // namespace hotcache
