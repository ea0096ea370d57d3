// Whether the cache pays: compares steps with it and without it, each timed layer by layer. Knows no ggml, no clock.
#pragma once

#include <cstdint>
#include <vector>

namespace hotcache {

// One step is one evaluation of the whole model; its layers are numbered in the order they are computed.
class Guard {
  public:
    enum class Kind {
        cached,  // with the cache, except in layers where it was found not to pay
        trial,   // with the cache in every layer, timed
        plain,   // without the cache, timed
    };

    struct Costs {
        double cached_s = 0.0;  // mean of a step, all layers
        double plain_s = 0.0;
    };

    // How the step that begins now is to be computed. A trial is about steps of one batch size; others that come between
    // take no part in it. `warm`: the slots hold what they are going to hold.
    Kind begin_step(int n_tokens, bool warm);

    // What a layer of the present step took, from its begin to the next layer's.
    void record(int layer, double seconds);

    // Whether the cache is found to pay, on the whole and in one layer. Both say yes until measured otherwise.
    bool pays() const { return pays_; }
    bool pays(int layer) const;

    Costs costs() const { return costs_; }
    int64_t trials() const { return trials_; }
    int64_t plain_steps() const { return plain_steps_; }

    // Found not to pay, it is to be tried again.
    void retry();

    // Everything measured so far is about other slots.
    void restart();

  private:
    struct Samples {
        std::vector<double> cached;
        std::vector<double> plain;
    };

    void begin_trial();
    bool judge();
    static double mean_without_worst(std::vector<double> samples);
    Costs costs_so_far() const;

    std::vector<Samples> samples_;   // by layer, of the present trial
    std::vector<bool> layer_pays_;
    Kind kind_ = Kind::cached;
    int n_tokens_ = 0;  // of the present trial
    int64_t steps_of_trial_ = 0;
    bool warm_ = false;
    bool pays_ = true;
    int64_t step_ = 0;
    int64_t next_trial_ = first_trial;
    int64_t gap_ = first_trial;
    int64_t trials_ = 0;
    int64_t plain_steps_ = 0;
    Costs costs_;

    static constexpr int64_t first_trial = 48;
    static constexpr int64_t longest_gap = 1 << 14;
    static constexpr int fewest_of_each_kind = 3;
    static constexpr int most_of_each_kind = 8;
    static constexpr double decisive = 1.3;      // so far apart, few steps are enough and soon need not be repeated
    static constexpr double margin = 1.01;       // the whole cache: what it must cost more to be switched off
    static constexpr double cold_margin = 1.25;  // while slots are still being filled
    static constexpr double layer_margin = 1.07; // a layer's times are noisier than their sum
};

}  // namespace hotcache
