// Where batches of prompts are computed faster, measured for each batch size. Knows no ggml, no clock.
#pragma once

#include <array>
#include <map>

namespace hotcache {

enum class PromptWay {
    stream,  // on the fast device, experts streamed to it
    cold,    // on the cold device
};

class PromptChoice {
  public:
    // How the next layer's batch is to be computed: both ways by turns until each has been timed often enough, then the
    // faster one. Sizes within a factor of two count as one; what was measured is measured again after many batches.
    PromptWay next(int n_tokens);
    // Whether that evaluation is to be timed and recorded.
    bool undecided(int n_tokens) const;
    void record(int n_tokens, PromptWay way, double seconds);

  private:
    struct Measured {
        std::array<int, 2> samples{};
        std::array<double, 2> least_s{};  // disturbances only ever add
        long decided_calls = 0;
    };
    static int size_class(int n_tokens);

    std::map<int, Measured> measured_;

    static constexpr int samples_of_each = 3;
    static constexpr long calls_until_again = 16384;
};

}  // namespace hotcache
