// Which experts of one layer hold a slot of the fast tier, and which should. Knows no ggml, no memory, no threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hotcache {

enum class Ranking {
    heat,   // decayed count of sightings
    lru,    // most recently seen
    fixed,  // empty slots are filled once, nothing is ever evicted
};

struct PolicySettings {
    Ranking ranking = Ranking::heat;
    int interval_tokens = 4;         // tokens between two rebalances
    double hysteresis = 1.25;        // a newcomer must score more than this times the resident it replaces
    int promotions = 2;              // most experts promoted at one rebalance
    int min_sightings = 2;           // sightings before an expert may replace another
    int dwell_tokens = 16;           // tokens a newcomer is safe from eviction
    double half_life_tokens = 128.0; // heat halves after so many tokens
};

// An expert on its way into a slot. The slot serves nobody until `arrived(slot)`.
struct Promotion {
    int expert;
    int slot;
};

// Slots of one layer. Every slot is in exactly one state: empty, loading one expert, or holding one expert; no expert is
// in two slots. A pinned slot keeps its expert. Not thread-safe: the owner's lock guards every call.
class SlotTable {
  public:
    static constexpr int none = -1;

    SlotTable(int n_experts, int n_slots);

    int n_slots() const { return static_cast<int>(slots_.size()); }

    // Slot whose content is `expert` and ready to be read, or `none`.
    int slot_of(int expert) const;

    // Keeps the slot's expert in place until the matching `unpin`.
    void pin(int slot);
    void unpin(int slot);

    // One routed (token, expert) pair of the current token.
    void see(int expert);

    // Ends `n_tokens` tokens. When a rebalance is due, unmaps the losers and returns what is to be copied.
    std::vector<Promotion> advance(int n_tokens, const PolicySettings & policy);

    // The copy of a promotion ended: its expert is served from now on.
    void arrived(int slot);

    int64_t evictions() const { return evictions_; }

  private:
    enum class State { empty, loading, ready };

    struct Slot {
        State state = State::empty;
        int expert = none;
        int pins = 0;
        int64_t since_token = 0;
    };

    struct Expert {
        int slot = none;
        int64_t sightings = 0;
        int64_t last_seen_token = 0;
        double heat = 0.0;  // as of last_seen_token
    };

    double score(const Expert & expert, const PolicySettings & policy) const;
    int empty_slot() const;
    int hottest_outsider(const PolicySettings & policy, int min_sightings) const;
    int coldest_evictable(const PolicySettings & policy) const;

    std::vector<Slot> slots_;
    std::vector<Expert> experts_;
    int64_t token_ = 0;
    int64_t last_rebalance_token_ = 0;
    int64_t evictions_ = 0;
    double half_life_tokens_ = PolicySettings{}.half_life_tokens;
};

// Most slots a layer may have so that all layers together stay within `budget_bytes`, when one expert of every layer
// together takes `one_expert_of_every_layer_bytes`.
int slots_within(int64_t budget_bytes, int64_t one_expert_of_every_layer_bytes, int n_experts);

}  // namespace hotcache
