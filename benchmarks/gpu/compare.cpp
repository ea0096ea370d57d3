// compare --base FILE --other FILE --out JSON: how far the next-token distributions of two runs of `measure` lie apart.
#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "files.h"

namespace gpu {

namespace {

// The logits that one run kept, position by position.
class Positions {
  public:
    explicit Positions(const std::string & path) : file_(path, "rb") {
        if (!file_.read(&n_vocab_, sizeof(n_vocab_)) || n_vocab_ < 1 || n_vocab_ > 1 << 24) {
            throw std::runtime_error(path + ": no logits in it");
        }
        logits_.resize(static_cast<size_t>(n_vocab_));
    }

    bool next() { return file_.read(logits_.data(), logits_.size() * sizeof(float)); }
    const std::vector<float> & logits() const { return logits_; }

  private:
    File file_;
    int32_t n_vocab_ = 0;
    std::vector<float> logits_;
};

size_t most_likely(const std::vector<float> & logits) {
    return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double log_sum_exp(const std::vector<float> & logits) {
    const double top = logits[most_likely(logits)];
    double sum = 0;
    for (const float x : logits) { sum += std::exp(x - top); }
    return top + std::log(sum);
}

// Kullback-Leibler divergence of `other` from `base`, in nats: sum of p_base (log p_base - log p_other).
double divergence(const std::vector<float> & base, const std::vector<float> & other) {
    const double base_norm = log_sum_exp(base), other_norm = log_sum_exp(other);
    double sum = 0;
    for (size_t i = 0; i < base.size(); ++i) {
        const double log_base = base[i] - base_norm;
        sum += std::exp(log_base) * (log_base - (other[i] - other_norm));
    }
    return sum;
}

void run(Arguments & arguments) {
    Positions base(arguments.required("base"));
    Positions other(arguments.required("other"));
    const std::string out = arguments.required("out");
    arguments.finish();
    if (base.logits().size() != other.logits().size()) { throw std::runtime_error("two different vocabularies"); }
    int positions = 0, same_top = 0, identical = 0;
    double sum = 0, highest = 0;
    while (base.next() && other.next()) {
        const double kld = divergence(base.logits(), other.logits());
        sum += kld;
        highest = std::max(highest, kld);
        same_top += most_likely(base.logits()) == most_likely(other.logits()) ? 1 : 0;
        identical += base.logits() == other.logits() ? 1 : 0;
        ++positions;
    }
    if (positions == 0) { throw std::runtime_error("no position to compare"); }
    File file(out, "w");
    std::fprintf(file.get(),
                 "{\"positions\": %d, \"mean_kld\": %.6g, \"highest_kld\": %.6g, \"same_top\": %d, "
                 "\"identical\": %d}\n",
                 positions, sum / positions, highest, same_top, identical);
    file.close();
}

}  // namespace

}  // namespace gpu

int main(int argc, char ** argv) { return gpu::run_program(argc, argv, gpu::run); }
