// Random histories of a slot table beside a naive model of it; every promise is checked after every step.
// Usage: slot_table_histories STEPS [SEED]
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "cache/slot_table.h"
#include "require.h"

using namespace hotcache;

namespace {

constexpr int nobody = -1;

// What was seen, kept the slow and obvious way.
struct Seen {
    explicit Seen(int n_experts) : heat(static_cast<size_t>(n_experts)), last(static_cast<size_t>(n_experts), -1e15) {}

    double mean() const {
        double sum = 0.0;
        for (const double h : heat) { sum += h; }
        return sum / static_cast<double>(heat.size());
    }

    std::vector<double> heat;
    std::vector<double> last;  // token
    double token = 0.0;
};

struct Slot {
    int expert = nobody;
    bool ready = false;
    int pins = 0;
    int64_t since = 0;
};

class History {
  public:
    explicit History(unsigned seed)
        : rng_(seed),
          n_experts_(1 + pick(24)),
          table_(n_experts_, pick(n_experts_ + 3)),
          seen_(n_experts_),
          candidate_(static_cast<size_t>(n_experts_)),
          slots_(static_cast<size_t>(table_.n_slots())),
          older_(table_),
          older_seen_(seen_) {}

    // Returns the evictions.
    int64_t run(int steps) {
        for (int i = 0; i < steps; ++i) {
            step();
            check();
        }
        return evictions_;
    }

  private:
    int pick(int below) { return static_cast<int>(rng_() % static_cast<unsigned>(below)); }
    double between(double low, double high) { return std::uniform_real_distribution<double>(low, high)(rng_); }
    size_t any_slot() { return static_cast<size_t>(pick(table_.n_slots())); }

    void step() {
        const int what = pick(100);
        if (what < 45) {
            see();
        } else if (what < 75) {
            advance();
        } else if (what < 77) {
            seed();
        } else if (what < 78) {
            inherit();
        } else if (!slots_.empty()) {
            what < 83 ? pin() : what < 88 ? unpin() : what < 95 ? arrive() : what < 98 ? cancel() : fill();
        }
    }

    void see() {
        const int expert = std::min(pick(n_experts_), pick(n_experts_));
        table_.see(expert);
        seen_.heat[static_cast<size_t>(expert)] += 1.0;
        seen_.last[static_cast<size_t>(expert)] = seen_.token;
        candidate_[static_cast<size_t>(expert)] = true;
    }

    PolicySettings any_policy() {
        PolicySettings p;
        p.ranking = static_cast<Ranking>(pick(4));
        p.interval_tokens = 1 + pick(4);
        p.promotions = pick(5);
        p.hysteresis = between(1.0, 3.0);
        p.min_sightings = 1 + pick(3);
        p.dwell_tokens = pick(6);
        p.half_life_tokens = std::exp2(between(-1.0, 12.0));
        return p;
    }

    void advance() {
        const PolicySettings policy = any_policy();
        const int n_tokens = pick(50) == 0 ? pick(2000) : 1 + pick(3);
        const int most = pick(3) == 0 ? pick(4) - 1 : 1000;
        for (double & h : seen_.heat) { h *= std::exp2(-n_tokens / policy.half_life_tokens); }
        seen_.token += n_tokens;
        token_ += n_tokens;
        const auto promotions = table_.advance(n_tokens, policy, most);
        const int allowed = std::min(most, policy.promotions);
        if (allowed <= 0 || slots_.empty() || token_ - last_rebalance_ < policy.interval_tokens) {
            REQUIRE(promotions.empty());
            return;
        }
        last_rebalance_ = token_;
        REQUIRE(static_cast<int>(promotions.size()) <= allowed);
        for (const Promotion & p : promotions) {
            REQUIRE(p.slot >= 0 && p.slot < table_.n_slots() && p.expert >= 0 && p.expert < n_experts_);
            const Slot & slot = slots_[static_cast<size_t>(p.slot)];
            REQUIRE(outsider(p.expert) && candidate_[static_cast<size_t>(p.expert)]);
            if (slot.expert == nobody) {
                check_newcomer(p.expert, policy, 0.0);
            } else {
                check_newcomer(p.expert, policy, policy.min_sightings - 0.5);
                check_eviction(slot, p.expert, policy);
                ++evictions_;
            }
            load(p);
        }
        if (static_cast<int>(promotions.size()) < allowed) {
            check_nobody_is_left(policy);
            candidate_.assign(candidate_.size(), false);
        }
    }

    // Of those who were seen: nobody for an empty slot, nor anybody worth an eviction.
    void check_nobody_is_left(const PolicySettings & policy) const {
        for (int e = 0; e < n_experts_; ++e) {
            if (!candidate_[static_cast<size_t>(e)] || !outsider(e)) { continue; }
            for (const Slot & slot : slots_) {
                REQUIRE(slot.expert != nobody);
                const bool by_one_measure = policy.ranking == Ranking::heat || policy.ranking == Ranking::lru;
                REQUIRE(!by_one_measure || !evictable(slot, policy) || worth(e, slot.expert, policy, -1e-6) <= 0.0);
            }
        }
    }

    // Above 0 when `newcomer` is worth the eviction of `resident`, give or take `slack`.
    double worth(int newcomer, int resident, const PolicySettings & policy, double slack) const {
        const auto in = static_cast<size_t>(newcomer);
        const auto out = static_cast<size_t>(resident);
        const double least_heat = policy.min_sightings - 0.5;
        if (policy.ranking != Ranking::lru) {
            return seen_.heat[in] - policy.hysteresis * seen_.heat[out] - least_heat + slack;
        }
        const double ahead = seen_.token - seen_.last[out] - policy.hysteresis * (seen_.token - seen_.last[in]);
        return std::min(ahead, seen_.heat[in] - least_heat + slack);
    }

    bool outsider(int expert) const {
        return std::none_of(slots_.begin(), slots_.end(), [expert](const Slot & s) { return s.expert == expert; });
    }

    bool evictable(const Slot & slot, const PolicySettings & policy) const {
        return slot.expert != nobody && slot.ready && slot.pins == 0 && token_ - slot.since >= policy.dwell_tokens;
    }

    // The table sums heat in another order, and what has faded to nothing may be 0: a close call is none.
    static bool clearly_less(double a, double b) { return a * (1.0 + 1e-6) + 1e-60 < b; }

    bool clearly_below(int a, int b, Ranking ranking) const {
        const double heat_a = seen_.heat[static_cast<size_t>(a)];
        const double heat_b = seen_.heat[static_cast<size_t>(b)];
        const bool older = seen_.last[static_cast<size_t>(a)] < seen_.last[static_cast<size_t>(b)];
        if (ranking == Ranking::lru) { return older; }
        if (ranking == Ranking::lfru) {
            const double bar = 2.0 * seen_.mean();
            const bool both_cold = clearly_less(heat_a, bar) && clearly_less(heat_b, bar);
            return both_cold ? older : clearly_less(bar, heat_b) && clearly_less(heat_a, heat_b);
        }
        return clearly_less(heat_a, heat_b);
    }

    void check_newcomer(int newcomer, const PolicySettings & policy, double least_heat) const {
        for (int e = 0; e < n_experts_; ++e) {
            const auto at = static_cast<size_t>(e);
            const bool rival = outsider(e) && candidate_[at] && seen_.heat[at] > least_heat + 1e-6;
            REQUIRE(!rival || !clearly_below(newcomer, e, policy.ranking));
        }
    }

    void check_eviction(const Slot & slot, int newcomer, const PolicySettings & policy) const {
        REQUIRE(policy.ranking != Ranking::fixed);
        REQUIRE(evictable(slot, policy));
        for (const Slot & other : slots_) {
            REQUIRE(other.expert != nobody);
            REQUIRE(!evictable(other, policy) || !clearly_below(other.expert, slot.expert, policy.ranking));
        }
        REQUIRE(worth(newcomer, slot.expert, policy, 1e-6) > 0.0);
    }

    void load(const Promotion & p) { slots_[static_cast<size_t>(p.slot)] = Slot{p.expert, false, 0, token_}; }

    void fill() {
        const int most = pick(2) == 0 ? pick(4) - 1 : 1000;
        const auto promotions = table_.fill(most);
        REQUIRE(promotions.empty() || static_cast<int>(promotions.size()) <= most);
        for (size_t i = 0; i < promotions.size(); ++i) {
            const Promotion & p = promotions[i];
            REQUIRE(slots_[static_cast<size_t>(p.slot)].expert == nobody && outsider(p.expert));
            load(p);
            if (i > 0) { REQUIRE(!clearly_below(promotions[i - 1].expert, p.expert, Ranking::heat)); }
        }
        const auto empty = [](const Slot & slot) { return slot.expert == nobody; };
        REQUIRE(static_cast<int>(promotions.size()) >= most || std::none_of(slots_.begin(), slots_.end(), empty));
        for (int e = 0; e < n_experts_ && !promotions.empty(); ++e) {
            REQUIRE(!outsider(e) || !clearly_below(promotions.back().expert, e, Ranking::heat));
        }
    }

    void pin() {
        const size_t slot = any_slot();
        if (!slots_[slot].ready) { return; }
        table_.pin(static_cast<int>(slot));
        ++slots_[slot].pins;
    }

    void unpin() {
        const size_t slot = any_slot();
        if (slots_[slot].pins == 0) { return; }
        table_.unpin(static_cast<int>(slot));
        --slots_[slot].pins;
    }

    // Late or early, in any order, sometimes for a slot that waits for nothing.
    void arrive() {
        const size_t slot = any_slot();
        table_.arrived(static_cast<int>(slot));
        if (slots_[slot].expert == nobody || slots_[slot].ready) { return; }
        slots_[slot].ready = true;
        slots_[slot].since = token_;
    }

    void cancel() {
        const size_t slot = any_slot();
        table_.cancel(static_cast<int>(slot));
        if (!slots_[slot].ready) { slots_[slot] = Slot{}; }
    }

    void seed() {
        std::vector<double> counts;
        double total = 0.0;
        for (int e = 0; e < n_experts_; ++e) {
            counts.push_back(pick(3) * pick(1000));
            total += counts.back();
        }
        table_.seed(counts);
        for (size_t e = 0; e < counts.size() && total > 0.0; ++e) {
            seen_.heat[e] += counts[e] * std::min(1.0, 4.0 * n_experts_ / total);
        }
    }

    // From an earlier self, from a table of another size (which says nothing), or a new earlier self.
    void inherit() {
        const int what = pick(3);
        if (what == 0) {
            older_ = table_;
            older_seen_ = seen_;
        } else if (what == 1) {
            table_.inherit(older_);
            seen_ = older_seen_;
        } else {
            table_.inherit(SlotTable(n_experts_ + 1, 3));
        }
    }

    // No expert in two slots, and nobody served from a slot that does not hold him: the model knows one slot an expert.
    void check() const {
        int occupied = 0;
        for (int e = 0; e < n_experts_; ++e) {
            const int slot = table_.slot_of(e);
            const auto modelled = std::find_if(slots_.begin(), slots_.end(), [e](const Slot & s) { return s.expert == e; });
            const bool ready = modelled != slots_.end() && modelled->ready;
            REQUIRE(slot == (ready ? static_cast<int>(modelled - slots_.begin()) : SlotTable::none));
            occupied += modelled == slots_.end() ? 0 : 1;
        }
        REQUIRE(occupied <= table_.n_slots() && table_.n_slots() <= n_experts_);
        REQUIRE(table_.evictions() == evictions_);
    }

    std::mt19937 rng_;
    int n_experts_;
    SlotTable table_;
    Seen seen_;
    std::vector<bool> candidate_;  // seen since a rebalance last found nobody worth promoting
    std::vector<Slot> slots_;
    SlotTable older_;
    Seen older_seen_;
    int64_t token_ = 0;
    int64_t last_rebalance_ = 0;
    int64_t evictions_ = 0;
};

}  // namespace

int main(int argc, char ** argv) {
    REQUIRE(argc > 1);
    const long steps = std::atol(argv[1]);
    const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atol(argv[2])) : 0;
    constexpr int one_history = 2000;
    int64_t evictions = 0;
    for (long done = 0; done < steps; done += one_history) {
        evictions += History(seed + static_cast<unsigned>(done / one_history)).run(one_history);
    }
    std::printf("%ld steps, %lld evictions\n", steps, static_cast<long long>(evictions));
    REQUIRE(evictions > steps / 500);  // or the histories would say little
    return 0;
}
