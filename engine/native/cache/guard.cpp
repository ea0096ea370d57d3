#include "guard.h"

#include <algorithm>
#include <numeric>

namespace hotcache {

Guard::Kind Guard::begin_step(int n_tokens, bool warm) {
    warm_ = warm;
    ++step_;
    kind_ = Kind::cached;
    if (step_ < next_trial_) { return kind_; }
    if (steps_of_trial_ == 0) { n_tokens_ = n_tokens; }
    if (judge() || n_tokens != n_tokens_) { return kind_; }
    // Plain steps stand among cached ones, so that whatever drifts meets both alike.
    const int64_t of_trial = steps_of_trial_++;
    kind_ = of_trial % 4 == 1 || of_trial % 4 == 2 ? Kind::plain : Kind::trial;
    if (kind_ == Kind::plain) { ++plain_steps_; }
    return kind_;
}

void Guard::record(int layer, double seconds) {
    if (kind_ == Kind::cached) { return; }
    const auto at = static_cast<size_t>(layer);
    if (samples_.size() <= at) { samples_.resize(at + 1); }
    (kind_ == Kind::plain ? samples_[at].plain : samples_[at].cached).push_back(seconds);
}

bool Guard::pays(int layer) const {
    const auto at = static_cast<size_t>(layer);
    return pays_ && (at >= layer_pays_.size() || layer_pays_[at]);
}

void Guard::retry() {
    begin_trial();
    layer_pays_.clear();
    pays_ = true;
    next_trial_ = step_ + first_trial;
}

void Guard::restart() {
    retry();
    gap_ = first_trial;
}

void Guard::begin_trial() {
    samples_.clear();
    steps_of_trial_ = 0;
}

double Guard::mean_without_worst(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    const auto kept = samples.size() - 1;
    return std::accumulate(samples.begin(), samples.begin() + static_cast<long>(kept), 0.0) / static_cast<double>(kept);
}

Guard::Costs Guard::costs_so_far() const {
    Costs costs;
    for (const Samples & layer : samples_) {
        costs.cached_s += mean_without_worst(layer.cached);
        costs.plain_s += mean_without_worst(layer.plain);
    }
    return costs;
}

// Ends the trial when it has shown enough; true when it is over.
bool Guard::judge() {
    size_t fewest = samples_.empty() ? 0 : most_of_each_kind;
    for (const Samples & layer : samples_) { fewest = std::min({fewest, layer.cached.size(), layer.plain.size()}); }
    // A trial that takes long is about a batch size that hardly comes any more: the next one is about another.
    if (step_ - next_trial_ > 16 * most_of_each_kind) {
        begin_trial();
        next_trial_ = step_ + gap_;
        return true;
    }
    if (fewest < fewest_of_each_kind) { return false; }
    const Costs costs = costs_so_far();
    const double ratio = costs.cached_s / costs.plain_s;
    const bool clear = ratio > decisive || ratio < 1 / decisive;
    if (!clear && fewest < most_of_each_kind) { return false; }

    ++trials_;
    costs_ = costs;
    pays_ = ratio <= (warm_ ? margin : cold_margin);
    layer_pays_.clear();
    for (const Samples & layer : samples_) {
        const double of_layer = mean_without_worst(layer.cached) / mean_without_worst(layer.plain);
        layer_pays_.push_back(of_layer <= layer_margin || !warm_);
    }
    begin_trial();
    gap_ = std::min(gap_ * (clear ? 16 : 4), longest_gap);
    next_trial_ = step_ + gap_;
    return true;
}

}  // namespace hotcache
