// routing --model FILE --device NAME --out JSON: how unevenly the model routes the trace that it is measured on, and
// how far that drifts from topic to topic, counted from the experts that its router really chose.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "files.h"
#include "session.h"
#include "trace.h"

namespace gpu {

namespace {

using Counts = std::vector<int64_t>;  // [experts]

// Sees the chosen experts of every layer as the scheduler computes them.
class Recorder {
  public:
    explicit Recorder(const ModelFacts & facts)
        : experts_(facts.experts),
          counts_(static_cast<size_t>(facts.layers), std::vector<Counts>(static_cast<size_t>(facts.topics))) {}

    // The topic of each of the `n` tokens of the batch to come.
    void expect(const int * topic, int n) {
        topic_ = topic;
        n_tokens_ = n;
    }

    static bool observe(ggml_tensor * tensor, bool ask, void * self) {
        int layer = 0;
        const bool wanted = std::sscanf(ggml_get_name(tensor), "ffn_moe_topk-%d", &layer) == 1;
        if (wanted && !ask) { static_cast<Recorder *>(self)->count(tensor, layer); }
        return wanted || !ask;
    }

    // Share that the busiest fifth of the experts has, averaged over layers; `by_topic` looks at each topic alone.
    double top_share(bool by_topic) const {
        double sum = 0;
        int terms = 0;
        for (const auto & layer : counts_) {
            for (const Counts & counts : by_topic ? layer : std::vector<Counts>{all_topics(layer)}) {
                if (counts.empty()) { continue; }
                sum += share_of_fifth(counts);
                ++terms;
            }
        }
        return terms == 0 ? 0 : sum / terms;
    }

    std::vector<double> top_share_of_layers() const {
        std::vector<double> shares;
        for (const auto & layer : counts_) {
            const Counts counts = all_topics(layer);
            if (!counts.empty()) { shares.push_back(share_of_fifth(counts)); }
        }
        return shares;
    }

    // How much of one topic's activations go to the busiest fifth of another topic: low is a strong drift.
    double carried_over() const {
        double sum = 0;
        int terms = 0;
        for (const auto & layer : counts_) {
            for (const Counts & hot : layer) {
                for (const Counts & other : layer) {
                    if (&hot == &other || hot.empty() || other.empty()) { continue; }
                    sum += share_of(busiest_fifth(hot), other);
                    ++terms;
                }
            }
        }
        return terms == 0 ? 1 : sum / terms;
    }

  private:
    void count(const ggml_tensor * ids, int layer) {
        // The last layer is computed only for tokens whose logits are wanted.
        if (ids->ne[1] != n_tokens_) { return; }
        std::vector<uint8_t> bytes(ggml_nbytes(ids));
        ggml_backend_tensor_get(ids, bytes.data(), 0, bytes.size());
        for (int64_t token = 0; token < ids->ne[1]; ++token) {
            Counts & counts = counts_.at(static_cast<size_t>(layer)).at(static_cast<size_t>(topic_[token]));
            counts.resize(static_cast<size_t>(experts_));
            for (int64_t k = 0; k < ids->ne[0]; ++k) {
                const size_t at = static_cast<size_t>(token) * ids->nb[1] + static_cast<size_t>(k) * ids->nb[0];
                int32_t expert = 0;
                std::memcpy(&expert, bytes.data() + at, sizeof(expert));
                ++counts.at(static_cast<size_t>(expert));
            }
        }
    }

    static Counts all_topics(const std::vector<Counts> & layer) {
        Counts sum;
        for (const Counts & counts : layer) {
            sum.resize(std::max(sum.size(), counts.size()));
            for (size_t e = 0; e < counts.size(); ++e) { sum[e] += counts[e]; }
        }
        return sum;
    }

    static std::vector<size_t> busiest_fifth(const Counts & counts) {
        std::vector<size_t> order(counts.size());
        std::iota(order.begin(), order.end(), size_t{0});
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return counts[a] > counts[b]; });
        order.resize(static_cast<size_t>(std::lround(static_cast<double>(counts.size()) / 5.0)));
        return order;
    }

    static double share_of(const std::vector<size_t> & experts, const Counts & counts) {
        int64_t part = 0;
        for (const size_t e : experts) { part += counts[e]; }
        const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0});
        return static_cast<double>(part) / static_cast<double>(all);
    }

    static double share_of_fifth(const Counts & counts) { return share_of(busiest_fifth(counts), counts); }

    int experts_;
    const int * topic_ = nullptr;
    int n_tokens_ = 0;
    std::vector<std::vector<Counts>> counts_;  // [layer][topic], empty where nothing was routed
};

void run(Arguments & arguments) {
    Placement placement = placement_from(arguments);
    const std::string out = arguments.required("out");
    const int tokens = arguments.whole("tokens", 2048, 64, 1 << 20);
    const int stay = arguments.whole("stay", 128, 1, 1 << 16);
    const int seed = arguments.whole("seed", 1, 0, 1 << 30);
    arguments.finish();
    const ModelFacts facts = read_facts(placement.model);
    placement.cpu_moe = std::min(placement.cpu_moe, facts.layers);
    Recorder recorder(facts);
    placement.n_batch = std::min(tokens, 512);
    placement.n_ctx = tokens;
    Session session(placement, Recorder::observe, &recorder);
    const Trace trace = make_trace(tokens, session.n_vocab(), facts.topics, stay, static_cast<uint64_t>(seed));
    for (int first = 0; first < tokens; first += placement.n_batch) {
        const int n = std::min(placement.n_batch, tokens - first);
        recorder.expect(trace.topic.data() + first, n);
        session.decode(trace.tokens.data() + first, n);
    }
    const std::vector<double> shares = recorder.top_share_of_layers();
    if (shares.empty()) { throw std::runtime_error("no layer chose an expert under the name ffn_moe_topk"); }
    File file(out, "w");
    std::fprintf(file.get(),
                 "{\"tokens\": %d, \"stay_tokens\": %d, \"topics\": %d, \"busiest_fifth\": %.4f, "
                 "\"busiest_fifth_lowest_layer\": %.4f, \"busiest_fifth_highest_layer\": %.4f, "
                 "\"busiest_fifth_within_topic\": %.4f, \"carried_over\": %.4f}\n",
                 tokens, stay, facts.topics, recorder.top_share(false), *std::min_element(shares.begin(), shares.end()),
                 *std::max_element(shares.begin(), shares.end()), recorder.top_share(true), recorder.carried_over());
    file.close();
}

}  // namespace

}  // namespace gpu

int main(int argc, char ** argv) { return gpu::run_program(argc, argv, gpu::run); }
