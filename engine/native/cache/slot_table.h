// Which experts of one layer hold a slot of the fast tier, and which should. Knows no ggml, no memory, no threads.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "sightings.h"

namespace hotcache {

// Heat is the count of an expert's sightings, each counting less the longer ago it was.
enum class Ranking {
    heat,   // LFU with decay: the hottest outsider replaces the coldest resident
    lru,    // the most recently seen outsider replaces the least recently seen resident
    lfru,   // as lru, but experts well above the layer's mean heat rank first, and a newcomer must be hotter
    fixed,  // empty slots are filled once, nothing is ever evicted
};

struct PolicySettings {
    Ranking ranking = Ranking::heat;
    int interval_tokens = 1;         // tokens between two rebalances
    int promotions = 2;              // most experts promoted at one rebalance
    double hysteresis = 1.25;        // times a newcomer must be hotter (lru: more recent) than the resident it replaces
    int min_sightings = 3;           // sightings of late it must have on top of that (lru: at all)
    int dwell_tokens = 16;           // tokens a newcomer is safe from eviction
    double half_life_tokens = 32.0;  // heat halves after so many tokens
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

    int n_experts() const { return static_cast<int>(experts_.size()); }
    int n_slots() const { return static_cast<int>(slots_.size()); }

    // No slot is empty, though some may still be loading.
    bool full() const { return empty_slot() == none; }

    // Slot whose content is `expert` and ready to be read, or `none`.
    int slot_of(int expert) const;

    // Keeps the slot's expert in place until the matching `unpin`.
    void pin(int slot);
    void unpin(int slot);

    // One routed (token, expert) pair of the current token.
    void see(int expert);

    // Takes recorded routing counts, one an expert, as if they had been seen.
    void seed(const std::vector<double> & counts) { sightings_.seed(counts); }

    // Takes over what another table of the same layer has seen, in place of this one's own. Slots stay as they are.
    void inherit(const SlotTable & old);

    // Ends `n_tokens` tokens. When a rebalance is due, unmaps the losers and returns what is to be copied: at most `most`
    // experts, best first, of those seen since a rebalance last found nobody worth promoting. With `most` 0 a rebalance
    // that is due waits for the next call.
    std::vector<Promotion> advance(int n_tokens, const PolicySettings & policy,
                                   int most = std::numeric_limits<int>::max());

    // An expert for every empty slot, for at most `most` of them: hottest first, then those never seen by number.
    std::vector<Promotion> fill(int most = std::numeric_limits<int>::max());

    // The copy of a promotion ended: its expert is served from now on. Ignored unless the slot is loading.
    void arrived(int slot);

    // A promotion that will not happen: its slot is empty again, so nobody may still be writing to it. Ignored unless the
    // slot is loading.
    void cancel(int slot);

    // Decayed count of sightings.
    double heat(int expert) const { return sightings_.heat(expert); }

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
        int slot = none;  // loading or ready
        bool candidate = false;
    };

    Promotion load(int expert, int slot);
    int empty_slot() const;
    bool ranks_below(int a, int b, Ranking ranking) const;
    int best_candidate(Ranking ranking, double least_heat) const;
    int worst_evictable(const PolicySettings & policy) const;
    bool worth_replacing(int resident, int newcomer, const PolicySettings & policy) const;

    std::vector<Slot> slots_;
    std::vector<Expert> experts_;
    std::vector<int> candidates_;  // experts seen since a rebalance last found nobody worth promoting, each once
    Sightings sightings_;
    int64_t token_ = 0;
    int64_t last_rebalance_token_ = 0;
    int64_t evictions_ = 0;
};

}  // namespace hotcache
