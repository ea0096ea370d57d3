#include "popularity.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "random.h"

namespace gpu {

namespace {

// Log-popularity falls with the rank plus this offset, as in trained models whose top expert is not alone.
constexpr double zipf_offset = 1.5;

std::vector<float> ranked(int experts, Random & random) {
    std::vector<float> logs(static_cast<size_t>(experts));
    for (size_t rank = 0; rank < logs.size(); ++rank) {
        logs[rank] = static_cast<float>(-std::log(static_cast<double>(rank) + zipf_offset));
    }
    const float mean = std::accumulate(logs.begin(), logs.end(), 0.0F) / static_cast<float>(experts);
    for (float & log : logs) { log -= mean; }
    for (size_t i = logs.size(); i > 1; --i) { std::swap(logs[i - 1], logs[random.below(i)]); }
    return logs;
}

// Share of the activations that the busiest fifth of the experts gets, from many tokens through one layer on paper.
class Trial {
  public:
    explicit Trial(const Shape & shape) : shape_(shape), popularity_(popularity(shape, 0)) {
        Random random(shape.seed, "trial");
        noise_.resize(static_cast<size_t>(shape.topics) * tokens * static_cast<size_t>(shape.experts));
        for (float & z : noise_) { z = random.normal(); }
    }

    double top_share(double lean) const {
        const auto experts = static_cast<size_t>(shape_.experts);
        std::vector<int64_t> taken(experts, 0);
        std::vector<float> logits(experts);
        std::vector<int> order(experts);
        const auto share = static_cast<float>(shape_.drift);
        const float * noise = noise_.data();
        for (const std::vector<float> & topical : popularity_.topical) {
            for (size_t token = 0; token < tokens; ++token, noise += experts) {
                for (size_t e = 0; e < experts; ++e) {
                    const float popular = (1 - share) * popularity_.common[e] + share * topical[e];
                    logits[e] = static_cast<float>(lean) * popular + noise[e];
                }
                std::iota(order.begin(), order.end(), 0);
                std::nth_element(order.begin(), order.begin() + shape_.used - 1, order.end(), [&](int a, int b) {
                    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
                });
                for (int k = 0; k < shape_.used; ++k) { ++taken[static_cast<size_t>(order[static_cast<size_t>(k)])]; }
            }
        }
        std::sort(taken.rbegin(), taken.rend());
        const auto fifth = static_cast<std::ptrdiff_t>(std::lround(shape_.experts / 5.0));
        const int64_t all = std::accumulate(taken.begin(), taken.end(), int64_t{0});
        return static_cast<double>(std::accumulate(taken.begin(), taken.begin() + fifth, int64_t{0})) /
               static_cast<double>(all);
    }

  private:
    static constexpr size_t tokens = 128;  // a topic
    const Shape & shape_;
    Popularity popularity_;
    std::vector<float> noise_;
};

}  // namespace

Popularity popularity(const Shape & shape, int layer) {
    Random random(shape.seed, "popularity", static_cast<uint64_t>(layer));
    Popularity result{ranked(shape.experts, random), {}};
    for (int topic = 0; topic < shape.topics; ++topic) { result.topical.push_back(ranked(shape.experts, random)); }
    return result;
}

double lean(const Shape & shape) {
    const Trial trial(shape);
    double low = 0;
    double high = 64;
    if (shape.top_share < trial.top_share(low) || shape.top_share > trial.top_share(high)) {
        throw std::invalid_argument("--top-share: the busiest fifth of " + std::to_string(shape.experts) +
                                    " experts can take between " + std::to_string(trial.top_share(low)) + " and " +
                                    std::to_string(trial.top_share(high)) + " of the activations");
    }
    for (int step = 0; step < 24; ++step) {
        const double middle = (low + high) / 2;
        (trial.top_share(middle) < shape.top_share ? low : high) = middle;
    }
    return high;
}

}  // namespace gpu
