// What a layer's routing has shown of each of its experts: how often, counting less the longer ago, and how recently.
#pragma once

#include <cstdint>
#include <vector>

namespace hotcache {

class Sightings {
  public:
    explicit Sightings(int n_experts);

    int n_experts() const { return static_cast<int>(experts_.size()); }

    // One routed (token, expert) pair of the current token.
    void see(int expert);

    // Ends `n_tokens` tokens, with which heat halves every `half_life_tokens`.
    void pass(int n_tokens, double half_life_tokens);

    // Takes recorded counts as heat: what was recorded ranks the experts, and is outweighed within some half-lives.
    // Entries that are no finite positive number, and those beyond the last expert, count as never seen.
    void seed(const std::vector<double> & counts);

    // Decayed count of sightings.
    double heat(int expert) const { return experts_[expert].weight * scale_; }
    double mean_heat() const { return experts_.empty() ? 0.0 : weight_ * scale_ / n_experts(); }

    // Tokens ended since the expert was last seen; very many when it never was.
    int64_t age_tokens(int expert) const { return token_ - experts_[expert].last_seen_token; }

  private:
    static constexpr int64_t long_ago = -(int64_t{1} << 60);

    struct Expert {
        double weight = 0.0;
        int64_t last_seen_token = long_ago;
    };

    void rescale();

    // Instead of every weight fading, each new sighting weighs more: heat is weight * scale_.
    std::vector<Expert> experts_;
    double weight_ = 0.0;  // of all experts together
    double scale_ = 1.0;
    int64_t token_ = 0;
};

}  // namespace hotcache
