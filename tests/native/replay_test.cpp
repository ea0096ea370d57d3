// Replays against a search through all that a cache could do, and against each other.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cache/replay.h"
#include "require.h"

using namespace hotcache;

namespace {

class Random {
  public:
    explicit Random(unsigned seed) : rng_(seed) {}

    int pick(int below) { return static_cast<int>(rng_() % static_cast<unsigned>(below)); }

    // `n` different experts; skewed when `skew` is more than 1.
    std::vector<int32_t> experts(int n, int n_experts, int skew) {
        std::vector<int32_t> chosen;
        while (static_cast<int>(chosen.size()) < n) {
            int expert = n_experts - 1;
            for (int i = 0; i < skew; ++i) { expert = std::min(expert, pick(n_experts)); }
            if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end()) { chosen.push_back(expert); }
        }
        return chosen;
    }

  private:
    std::mt19937 rng_;
};

struct Case {
    std::vector<int32_t> ids;
    RoutingTrace trace;

    Case(Random & random, int n_experts, int n_used, int n_tokens, int skew) {
        for (int t = 0; t < n_tokens; ++t) {
            for (const int32_t e : random.experts(n_used, n_experts, skew)) { ids.push_back(e); }
        }
        trace = {ids.data(), static_cast<size_t>(n_tokens), n_used, n_experts};
    }
    Case(const Case &) = delete;  // the trace points into the ids
    Case & operator=(const Case &) = delete;
};

int bits(unsigned set) { return set == 0 ? 0 : static_cast<int>(set & 1) + bits(set >> 1); }

// The most hits of all caches that load what a token uses: tries every set of experts that could be kept after each token.
int64_t most_hits(const RoutingTrace & trace, int n_slots, size_t n_skip, size_t token = 0, unsigned cached = 0) {
    if (token == trace.n_tokens) { return 0; }
    unsigned used = 0;
    for (const int32_t * id = trace.begin(token); id != trace.end(token); ++id) { used |= 1U << *id; }
    int64_t best = 0;
    for (unsigned keep = 0; keep < 1U << trace.n_experts; ++keep) {
        if ((keep & ~(cached | used)) != 0 || bits(keep) > n_slots) { continue; }
        best = std::max(best, most_hits(trace, n_slots, n_skip, token + 1, keep));
    }
    return best + (token >= n_skip ? bits(cached & used) : 0);
}

void optimal_is_the_best_of_all_caches() {
    for (unsigned seed = 0; seed < 400; ++seed) {
        Random random(seed);
        const int n_experts = 2 + random.pick(3);
        const int n_used = 1 + random.pick(std::min(n_experts, 2));
        const Case c(random, n_experts, n_used, 5 + random.pick(2), 1 + random.pick(2));
        const int n_slots = random.pick(n_experts + 2);
        const auto n_skip = static_cast<size_t>(random.pick(4));
        REQUIRE(replay_optimal(c.trace, n_slots, n_skip) == most_hits(c.trace, n_slots, n_skip));
    }
}

PolicySettings any_policy(Random & random) {
    PolicySettings p;
    p.ranking = static_cast<Ranking>(random.pick(4));
    p.interval_tokens = 1 + random.pick(3);
    p.promotions = 1 + random.pick(8);
    p.hysteresis = 1.0 + random.pick(3) / 2.0;
    p.min_sightings = 1 + random.pick(3);
    p.dwell_tokens = random.pick(5);
    p.half_life_tokens = 1 << random.pick(8);
    return p;
}

// The slot table may also load what is not in use, and could be lucky with that; over these traces it never is.
void no_policy_beats_the_optimum() {
    for (unsigned seed = 0; seed < 5000; ++seed) {
        Random random(seed);
        const int n_experts = 2 + random.pick(40);
        const int n_used = 1 + random.pick(std::min(n_experts, 8));
        const Case c(random, n_experts, n_used, 1 + random.pick(200), 1 + random.pick(4));
        const int n_slots = random.pick(n_experts + 1);
        const auto n_skip = static_cast<size_t>(random.pick(100));
        const int64_t hits = replay(c.trace, n_slots, n_skip, any_policy(random));
        REQUIRE(hits >= 0 && hits <= replay_optimal(c.trace, n_slots, n_skip));
    }
}

int64_t hits_of(const std::vector<int32_t> & ids, int n_used, int n_slots, size_t n_skip, const PolicySettings & policy) {
    const RoutingTrace trace{ids.data(), ids.size() / static_cast<size_t>(n_used), n_used, 8};
    REQUIRE(check_trace(trace).empty());
    return replay(trace, n_slots, n_skip, policy);
}

void a_promotion_serves_from_the_second_token_on() {
    const PolicySettings policy;
    REQUIRE(hits_of({3, 3}, 1, 1, 0, policy) == 0);
    REQUIRE(hits_of({3, 3, 3}, 1, 1, 0, policy) == 1);
    REQUIRE(hits_of({3, 4, 4, 3, 3, 4}, 2, 8, 0, policy) == 2);
    REQUIRE(hits_of({3, 3, 3, 3}, 1, 1, 3, policy) == 1);
    REQUIRE(hits_of({3, 3, 3, 3}, 1, 1, 9, policy) == 0);
    REQUIRE(hits_of({3, 3, 3, 3}, 1, 0, 0, policy) == 0);
}

std::string problem_of(const std::vector<int32_t> & ids, int n_used, int n_experts) {
    return check_trace({ids.data(), ids.size() / static_cast<size_t>(std::max(n_used, 1)), n_used, n_experts});
}

void traces_are_checked() {
    REQUIRE(problem_of({0, 1, 2, 0}, 2, 3).empty());
    REQUIRE(problem_of({}, 1, 1).empty());
    REQUIRE(problem_of({0, 1, 2, 3}, 2, 3).find("token 1 names expert 3 of 3") != std::string::npos);
    REQUIRE(problem_of({0, -1}, 2, 3).find("expert -1") != std::string::npos);
    REQUIRE(problem_of({0, 1, 2, 2}, 2, 3).find("expert 2 twice") != std::string::npos);
    REQUIRE(!problem_of({0}, 0, 3).empty() && !problem_of({0}, 4, 3).empty());
    REQUIRE(!problem_of({0}, 1, 0).empty() && !problem_of({0}, 1, 65537).empty());
}

}  // namespace

int main() {
    optimal_is_the_best_of_all_caches();
    no_policy_beats_the_optimum();
    a_promotion_serves_from_the_second_token_on();
    traces_are_checked();
    return 0;
}
