#include "sightings.h"

#include <algorithm>
#include <cmath>

namespace hotcache {

namespace {

// Mean heat that a recording gives at most. Live traffic keeps up 1 (10 of 512 experts used) to 12 (2 of 8) at the default
// half-life, so a recording that misleads is outweighed within some three half-lives.
constexpr double seeded_heat = 4.0;

}  // namespace

Sightings::Sightings(int n_experts) : experts_(static_cast<size_t>(std::max(n_experts, 0))) {}

void Sightings::see(int expert) {
    const double weight = 1.0 / scale_;
    experts_[expert].weight += weight;
    experts_[expert].last_seen_token = token_;
    weight_ += weight;
}

void Sightings::pass(int n_tokens, double half_life_tokens) {
    token_ += n_tokens;
    scale_ *= std::exp2(-n_tokens / half_life_tokens);
    // Long before weights overflow; a scale of 0 is a history faded to nothing.
    if (scale_ < 1e-100) { rescale(); }
}

void Sightings::rescale() {
    weight_ = 0.0;
    for (Expert & e : experts_) {
        e.weight *= scale_;
        weight_ += e.weight;
    }
    scale_ = 1.0;
}

void Sightings::seed(const std::vector<double> & counts) {
    const size_t n = std::min(counts.size(), experts_.size());
    const auto usable = [](double count) { return std::isfinite(count) && count > 0.0; };
    double total = 0.0;
    for (size_t e = 0; e < n; ++e) { total += usable(counts[e]) ? counts[e] : 0.0; }
    if (!usable(total)) { return; }
    const double heat_per_count = std::min(1.0, seeded_heat * n_experts() / total);
    for (size_t e = 0; e < n; ++e) {
        const double weight = usable(counts[e]) ? counts[e] * heat_per_count / scale_ : 0.0;
        experts_[e].weight += weight;
        weight_ += weight;
    }
}

}  // namespace hotcache
