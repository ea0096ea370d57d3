#include "slot_table.h"

#include <algorithm>
#include <cmath>

namespace hotcache {

SlotTable::SlotTable(int n_experts, int n_slots)
    : slots_(static_cast<size_t>(std::clamp(n_slots, 0, std::max(n_experts, 0)))),
      experts_(static_cast<size_t>(std::max(n_experts, 0))) {}

int SlotTable::slot_of(int expert) const {
    const int slot = experts_[expert].slot;
    return slot != none && slots_[slot].state == State::ready ? slot : none;
}

void SlotTable::pin(int slot) { ++slots_[slot].pins; }

void SlotTable::unpin(int slot) { --slots_[slot].pins; }

void SlotTable::see(int expert) {
    Expert & e = experts_[expert];
    e.heat = e.heat * std::exp2(-static_cast<double>(token_ - e.last_seen_token) / half_life_tokens_) + 1.0;
    e.last_seen_token = token_;
    ++e.sightings;
}

std::vector<Promotion> SlotTable::advance(int n_tokens, const PolicySettings & policy) {
    half_life_tokens_ = std::max(policy.half_life_tokens, 1e-3);
    token_ += n_tokens;
    std::vector<Promotion> promotions;
    if (slots_.empty() || token_ - last_rebalance_token_ < policy.interval_tokens) { return promotions; }
    last_rebalance_token_ = token_;

    while (static_cast<int>(promotions.size()) < policy.promotions) {
        int slot = empty_slot();
        // An empty slot is worth nothing, so one sighting is enough to fill it.
        const int newcomer = hottest_outsider(policy, slot == none ? policy.min_sightings : 1);
        if (newcomer == none) { break; }
        if (slot == none) {
            slot = policy.ranking == Ranking::fixed ? none : coldest_evictable(policy);
            if (slot == none) { break; }
            Expert & resident = experts_[slots_[slot].expert];
            if (score(experts_[newcomer], policy) <= policy.hysteresis * score(resident, policy)) { break; }
            resident.slot = none;
            ++evictions_;
        }
        slots_[slot] = Slot{State::loading, newcomer, 0, token_};
        experts_[newcomer].slot = slot;
        promotions.push_back({newcomer, slot});
    }
    return promotions;
}

void SlotTable::arrived(int slot) {
    slots_[slot].state = State::ready;
    slots_[slot].since_token = token_;
}

double SlotTable::score(const Expert & expert, const PolicySettings & policy) const {
    if (expert.sightings == 0) { return 0.0; }
    const auto age_tokens = static_cast<double>(token_ - expert.last_seen_token);
    // The reciprocal of the age makes "so many times hotter" mean "so many times more recent".
    if (policy.ranking == Ranking::lru) { return 1.0 / (1.0 + age_tokens); }
    return expert.heat * std::exp2(-age_tokens / half_life_tokens_);
}

int SlotTable::empty_slot() const {
    const auto found =
        std::find_if(slots_.begin(), slots_.end(), [](const Slot & s) { return s.state == State::empty; });
    return found == slots_.end() ? none : static_cast<int>(found - slots_.begin());
}

int SlotTable::hottest_outsider(const PolicySettings & policy, int min_sightings) const {
    int best = none;
    double best_score = 0.0;
    for (int e = 0; e < static_cast<int>(experts_.size()); ++e) {
        if (experts_[e].slot != none || experts_[e].sightings < min_sightings) { continue; }
        const double s = score(experts_[e], policy);
        if (s > best_score) {
            best = e;
            best_score = s;
        }
    }
    return best;
}

int SlotTable::coldest_evictable(const PolicySettings & policy) const {
    int worst = none;
    double worst_score = 0.0;
    for (int i = 0; i < n_slots(); ++i) {
        const Slot & slot = slots_[i];
        if (slot.state != State::ready || slot.pins > 0 || token_ - slot.since_token < policy.dwell_tokens) {
            continue;
        }
        const double s = score(experts_[slot.expert], policy);
        if (worst == none || s < worst_score) {
            worst = i;
            worst_score = s;
        }
    }
    return worst;
}

int slots_within(int64_t budget_bytes, int64_t one_expert_of_every_layer_bytes, int n_experts) {
    if (budget_bytes <= 0 || one_expert_of_every_layer_bytes <= 0) { return 0; }
    return static_cast<int>(std::min<int64_t>(budget_bytes / one_expert_of_every_layer_bytes, n_experts));
}

}  // namespace hotcache
