#include "prompt_choice.h"

#include <algorithm>

namespace hotcache {

int PromptChoice::size_class(int n_tokens) {
    int log2 = 0;
    while (n_tokens > 1) {
        n_tokens /= 2;
        ++log2;
    }
    return log2;
}

bool PromptChoice::undecided(int n_tokens) const {
    const auto found = measured_.find(size_class(n_tokens));
    return found == measured_.end() ||
           *std::min_element(found->second.samples.begin(), found->second.samples.end()) < samples_of_each;
}

PromptWay PromptChoice::next(int n_tokens) {
    Measured & m = measured_[size_class(n_tokens)];
    if (undecided(n_tokens)) { return m.samples[0] <= m.samples[1] ? PromptWay::stream : PromptWay::cold; }
    if (++m.decided_calls > calls_until_again) {
        m = Measured{};
        return PromptWay::stream;
    }
    return m.least_s[0] <= m.least_s[1] ? PromptWay::stream : PromptWay::cold;
}

void PromptChoice::record(int n_tokens, PromptWay way, double seconds) {
    Measured & m = measured_[size_class(n_tokens)];
    const auto at = static_cast<size_t>(way == PromptWay::stream ? 0 : 1);
    m.least_s[at] = m.samples[at] == 0 ? seconds : std::min(m.least_s[at], seconds);
    ++m.samples[at];
}

}  // namespace hotcache
