#include "guard.h"

#include <algorithm>
#include <numeric>

namespace hotcache {

Guard::Kind Guard::begin_step(int n_tokens, bool warm) {
    if (n_tokens != n_tokens_) {
        n_tokens_ = n_tokens;
        samples_.clear();
    }
    warm_ = warm;
    ++step_;
    kind_ = Kind::cached;
    if (step_ < next_trial_) { return kind_; }
    // Plain steps stand among cached ones, so that whatever drifts meets both alike.
    const int64_t of_trial = step_ - next_trial_;
    if (of_trial >= 2 * steps_of_each_kind) {
        judge();
        return kind_;
    }
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
    samples_.clear();
    layer_pays_.clear();
    pays_ = true;
    next_trial_ = step_ + first_trial;
}

void Guard::restart() {
    retry();
    gap_ = first_trial;
}

double Guard::mean_without_worst(std::vector<double> & samples) {
    std::sort(samples.begin(), samples.end());
    const auto kept = samples.size() - 1;
    return std::accumulate(samples.begin(), samples.begin() + static_cast<long>(kept), 0.0) / static_cast<double>(kept);
}

void Guard::judge() {
    Costs costs;
    std::vector<bool> layer_pays;
    bool enough = !samples_.empty();
    for (Samples & layer : samples_) {
        // Batches of other sizes came between: too few to say anything.
        if (layer.cached.size() < steps_of_each_kind - 1 || layer.plain.size() < steps_of_each_kind - 1) {
            enough = false;
            break;
        }
        const double cached_s = mean_without_worst(layer.cached);
        const double plain_s = mean_without_worst(layer.plain);
        layer_pays.push_back(cached_s <= layer_margin * plain_s || !warm_);
        costs.cached_s += cached_s;
        costs.plain_s += plain_s;
    }
    samples_.clear();
    gap_ = std::min(gap_ * 4, longest_gap);
    next_trial_ = step_ + (enough ? gap_ : first_trial);
    if (!enough) { return; }
    ++trials_;
    costs_ = costs;
    pays_ = costs.cached_s <= (warm_ ? margin : cold_margin) * costs.plain_s;
    layer_pays_ = std::move(layer_pays);
}

}  // namespace hotcache
