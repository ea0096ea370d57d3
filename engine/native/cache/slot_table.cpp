#include "slot_table.h"

#include <algorithm>

namespace hotcache {

namespace {

// An expert this many times hotter than the layer's mean is protected from experts that are merely recent.
constexpr double protected_heat = 2.0;

// Heat of an expert seen `min_sightings` times of late: the older of them count a little less than 1.
double least_heat(const PolicySettings & policy) { return policy.min_sightings - 0.5; }

}  // namespace

SlotTable::SlotTable(int n_experts, int n_slots)
    : slots_(static_cast<size_t>(std::clamp(n_slots, 0, std::max(n_experts, 0)))),
      experts_(static_cast<size_t>(std::max(n_experts, 0))),
      sightings_(n_experts) {
    candidates_.reserve(experts_.size());
}

int SlotTable::slot_of(int expert) const {
    const int slot = experts_[expert].slot;
    return slot != none && slots_[slot].state == State::ready ? slot : none;
}

void SlotTable::pin(int slot) { ++slots_[slot].pins; }

void SlotTable::unpin(int slot) { --slots_[slot].pins; }

void SlotTable::see(int expert) {
    sightings_.see(expert);
    if (experts_[expert].candidate) { return; }
    experts_[expert].candidate = true;
    candidates_.push_back(expert);
}

void SlotTable::inherit(const SlotTable & old) {
    if (old.sightings_.n_experts() == sightings_.n_experts()) { sightings_ = old.sightings_; }
}

std::vector<Promotion> SlotTable::advance(int n_tokens, const PolicySettings & policy, int most) {
    sightings_.pass(n_tokens, policy.half_life_tokens);
    token_ += n_tokens;
    std::vector<Promotion> promotions;
    most = std::min(most, policy.promotions);
    if (most <= 0 || slots_.empty() || token_ - last_rebalance_token_ < policy.interval_tokens) { return promotions; }
    last_rebalance_token_ = token_;

    while (static_cast<int>(promotions.size()) < most) {
        int slot = empty_slot();
        const bool full = slot == none;
        if (full && policy.ranking == Ranking::fixed) { break; }
        // An empty slot is worth nothing, so any sighting is enough to fill it.
        const int newcomer = best_candidate(policy.ranking, full ? least_heat(policy) : 0.0);
        if (newcomer == none) { break; }
        if (full) {
            slot = worst_evictable(policy);
            if (slot == none || !worth_replacing(slots_[slot].expert, newcomer, policy)) { break; }
            experts_[slots_[slot].expert].slot = none;
            ++evictions_;
        }
        promotions.push_back(load(newcomer, slot));
    }
    if (static_cast<int>(promotions.size()) < most) {
        for (const int expert : candidates_) { experts_[expert].candidate = false; }
        candidates_.clear();
    }
    return promotions;
}

std::vector<Promotion> SlotTable::fill(int most) {
    std::vector<int> outsiders;
    for (int e = 0; e < sightings_.n_experts(); ++e) {
        if (experts_[e].slot == none) { outsiders.push_back(e); }
    }
    std::stable_sort(outsiders.begin(), outsiders.end(),
                     [this](int a, int b) { return sightings_.heat(a) > sightings_.heat(b); });
    std::vector<Promotion> promotions;
    // There are at least as many outsiders as empty slots: no table has more slots than experts.
    auto next = outsiders.begin();
    for (int slot = 0; slot < n_slots() && static_cast<int>(promotions.size()) < most; ++slot) {
        if (slots_[slot].state == State::empty) { promotions.push_back(load(*next++, slot)); }
    }
    return promotions;
}

Promotion SlotTable::load(int expert, int slot) {
    slots_[slot] = Slot{State::loading, expert, 0, token_};
    experts_[expert].slot = slot;
    return {expert, slot};
}

void SlotTable::arrived(int slot) {
    if (slots_[slot].state != State::loading) { return; }
    slots_[slot].state = State::ready;
    slots_[slot].since_token = token_;
}

void SlotTable::cancel(int slot) {
    if (slots_[slot].state != State::loading) { return; }
    experts_[slots_[slot].expert].slot = none;
    slots_[slot] = Slot{};
}

int SlotTable::empty_slot() const {
    const auto found =
        std::find_if(slots_.begin(), slots_.end(), [](const Slot & s) { return s.state == State::empty; });
    return found == slots_.end() ? none : static_cast<int>(found - slots_.begin());
}

bool SlotTable::ranks_below(int a, int b, Ranking ranking) const {
    const double heat_a = sightings_.heat(a);
    const double heat_b = sightings_.heat(b);
    if (ranking == Ranking::lru || ranking == Ranking::lfru) {
        const double protected_above = protected_heat * sightings_.mean_heat();
        const bool by_heat = ranking == Ranking::lfru && std::max(heat_a, heat_b) > protected_above;
        const int64_t age_a = sightings_.age_tokens(a);
        const int64_t age_b = sightings_.age_tokens(b);
        if (!by_heat && age_a != age_b) { return age_a > age_b; }
    }
    return heat_a < heat_b;
}

int SlotTable::best_candidate(Ranking ranking, double least_heat) const {
    int best = none;
    for (const int e : candidates_) {
        if (experts_[e].slot != none || sightings_.heat(e) < least_heat) { continue; }
        if (best == none || ranks_below(best, e, ranking)) { best = e; }
    }
    return best;
}

int SlotTable::worst_evictable(const PolicySettings & policy) const {
    int worst = none;
    for (int i = 0; i < n_slots(); ++i) {
        const Slot & slot = slots_[i];
        if (slot.state != State::ready || slot.pins > 0 || token_ - slot.since_token < policy.dwell_tokens) {
            continue;
        }
        if (worst == none || ranks_below(slot.expert, slots_[worst].expert, policy.ranking)) { worst = i; }
    }
    return worst;
}

bool SlotTable::worth_replacing(int resident, int newcomer, const PolicySettings & policy) const {
    if (policy.ranking == Ranking::lru) {
        const auto age = [this](int expert) { return static_cast<double>(sightings_.age_tokens(expert)); };
        return age(resident) > policy.hysteresis * age(newcomer);
    }
    return sightings_.heat(newcomer) >= policy.hysteresis * sightings_.heat(resident) + least_heat(policy);
}

}  // namespace hotcache
