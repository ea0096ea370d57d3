// Properties of the cache's policy over random histories. Prints the first violated one and exits 1.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

#include "cache/settings.h"
#include "cache/slot_table.h"

using namespace hotcache;

#define REQUIRE(condition)                                                            \
    do {                                                                              \
        if (!(condition)) {                                                           \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            std::exit(1);                                                             \
        }                                                                             \
    } while (false)

namespace {

PolicySettings eager() {
    PolicySettings p;
    p.interval_tokens = 1;
    p.promotions = 4;
    p.min_sightings = 1;
    p.dwell_tokens = 0;
    return p;
}

// Promotes `expert` into a table that has room.
void make_resident(SlotTable & table, int expert) {
    table.see(expert);
    for (const Promotion & p : table.advance(1, eager())) { table.arrived(p.slot); }
    REQUIRE(table.slot_of(expert) != SlotTable::none);
}

void capacity_zero_is_off() {
    SlotTable table(8, 0);
    for (int i = 0; i < 100; ++i) {
        table.see(i % 8);
        REQUIRE(table.advance(1, eager()).empty());
        REQUIRE(table.slot_of(i % 8) == SlotTable::none);
    }
}

void never_more_slots_than_experts() { REQUIRE(SlotTable(4, 100).n_slots() == 4); }

void loading_slot_serves_nobody() {
    SlotTable table(4, 2);
    table.see(1);
    const auto moves = table.advance(1, eager());
    REQUIRE(moves.size() == 1 && moves[0].expert == 1);
    REQUIRE(table.slot_of(1) == SlotTable::none);
    table.arrived(moves[0].slot);
    REQUIRE(table.slot_of(1) == moves[0].slot);
}

void pinned_slot_keeps_its_expert() {
    SlotTable table(4, 1);
    make_resident(table, 0);
    table.pin(0);
    for (int i = 0; i < 50; ++i) {
        table.see(1);
        REQUIRE(table.advance(1, eager()).empty());
    }
    table.unpin(0);
    table.see(1);
    REQUIRE(table.advance(1, eager()).size() == 1);
}

void dwell_protects_a_newcomer() {
    SlotTable table(4, 1);
    make_resident(table, 0);
    PolicySettings p = eager();
    p.dwell_tokens = 10;
    int evicted_after = 0;
    for (int i = 1; i <= 20 && evicted_after == 0; ++i) {
        table.see(1);
        if (!table.advance(1, p).empty()) { evicted_after = i; }
    }
    REQUIRE(evicted_after == 10);
}

void hysteresis_demands_a_hotter_newcomer() {
    PolicySettings p = eager();
    p.hysteresis = 3.0;
    p.half_life_tokens = 1e9;
    SlotTable table(4, 1);
    make_resident(table, 0);
    table.see(0);  // heat a little under 2: the first token decayed
    for (int seen = 1; seen <= 5; ++seen) {
        table.see(1);
        REQUIRE(table.advance(1, p).empty());
    }
    table.see(1);  // 6 > 3 * heat
    REQUIRE(table.advance(1, p).size() == 1);
}

void a_newcomer_needs_its_sightings() {
    PolicySettings p = eager();
    p.min_sightings = 3;
    p.half_life_tokens = 0.5;
    SlotTable table(4, 1);
    make_resident(table, 0);
    table.advance(100, p);  // the resident is cold by now
    for (int seen = 1; seen <= 3; ++seen) {
        table.see(1);
        REQUIRE(table.advance(1, p).empty() == (seen < 3));
    }
}

void interval_spaces_the_rebalances() {
    PolicySettings p = eager();
    p.interval_tokens = 5;
    SlotTable table(8, 8);
    int rebalances = 0;
    for (int token = 0; token < 50; ++token) {
        table.see(token % 8);
        const auto moves = table.advance(1, p);
        rebalances += moves.empty() ? 0 : 1;
        REQUIRE(moves.size() <= 4);
        for (const auto & m : moves) { table.arrived(m.slot); }
    }
    REQUIRE(rebalances == 2);  // 8 experts, at most 4 a time
}

void fixed_never_evicts() {
    PolicySettings p = eager();
    p.ranking = Ranking::fixed;
    SlotTable table(8, 2);
    make_resident(table, 0);
    make_resident(table, 1);
    for (int i = 0; i < 100; ++i) {
        table.see(5);
        REQUIRE(table.advance(1, p).empty());
    }
    REQUIRE(table.evictions() == 0);
}

void lru_evicts_the_longest_unseen() {
    PolicySettings p = eager();
    p.ranking = Ranking::lru;
    p.hysteresis = 1.0;
    SlotTable table(4, 2);
    make_resident(table, 0);
    make_resident(table, 1);
    table.see(0);
    table.advance(1, p);
    table.see(2);
    const auto moves = table.advance(1, p);
    REQUIRE(moves.size() == 1 && moves[0].expert == 2);
    REQUIRE(table.slot_of(0) != SlotTable::none && table.slot_of(1) == SlotTable::none);
}

void heat_prefers_frequent_over_recent() {
    SlotTable table(4, 1);
    PolicySettings p = eager();
    p.hysteresis = 1.0;
    make_resident(table, 0);
    for (int i = 0; i < 10; ++i) {
        table.see(0);
        table.advance(1, p);
    }
    table.see(1);
    REQUIRE(table.advance(1, p).empty());
}

// Two experts never share a slot, a pinned slot never changes hands, promises of promotions are kept.
void random_histories(unsigned seed, int steps) {
    std::mt19937 rng(seed);
    const int n_experts = 1 + static_cast<int>(rng() % 40);
    const int n_slots = static_cast<int>(rng() % 44);
    SlotTable table(n_experts, n_slots);
    std::vector<Promotion> loading;
    std::vector<std::pair<int, int>> pinned;  // slot, expert
    for (int step = 0; step < steps; ++step) {
        PolicySettings p;
        p.ranking = static_cast<Ranking>(rng() % 3);
        p.interval_tokens = 1 + static_cast<int>(rng() % 4);
        p.promotions = static_cast<int>(rng() % 5);
        p.hysteresis = 1.0 + (rng() % 100) / 50.0;
        p.min_sightings = 1 + static_cast<int>(rng() % 3);
        p.dwell_tokens = static_cast<int>(rng() % 6);
        p.half_life_tokens = 1.0 + rng() % 200;
        for (unsigned i = 0; i < rng() % 8; ++i) {
            const int expert = static_cast<int>(std::min<unsigned>(rng() % n_experts, rng() % n_experts));
            table.see(expert);
            const int slot = table.slot_of(expert);
            if (slot != SlotTable::none && rng() % 4 == 0) {
                table.pin(slot);
                pinned.emplace_back(slot, expert);
            }
        }
        const auto moves = table.advance(1, p);
        REQUIRE(static_cast<int>(moves.size()) <= p.promotions);
        for (const Promotion & m : moves) {
            REQUIRE(m.slot >= 0 && m.slot < table.n_slots() && m.expert >= 0 && m.expert < n_experts);
            for (const auto & [slot, expert] : pinned) { REQUIRE(slot != m.slot); }
            for (const Promotion & l : loading) { REQUIRE(l.slot != m.slot && l.expert != m.expert); }
            loading.push_back(m);
        }
        while (!loading.empty() && rng() % 2 == 0) {
            const size_t which = rng() % loading.size();
            table.arrived(loading[which].slot);
            REQUIRE(table.slot_of(loading[which].expert) == loading[which].slot);
            loading.erase(loading.begin() + static_cast<long>(which));
        }
        for (const auto & [slot, expert] : pinned) { REQUIRE(table.slot_of(expert) == slot); }
        while (!pinned.empty() && rng() % 2 == 0) {
            table.unpin(pinned.back().first);
            pinned.pop_back();
        }
        std::set<int> taken;
        for (int e = 0; e < n_experts; ++e) {
            const int slot = table.slot_of(e);
            if (slot != SlotTable::none) { REQUIRE(taken.insert(slot).second); }
        }
    }
}

void budget_is_never_exceeded() {
    REQUIRE(slots_within(0, 10, 8) == 0);
    REQUIRE(slots_within(9, 10, 8) == 0);
    REQUIRE(slots_within(39, 10, 8) == 3);
    REQUIRE(slots_within(1000, 10, 8) == 8);
    REQUIRE(slots_within(100, 0, 8) == 0);
    REQUIRE(slots_within(-5, 10, 8) == 0);
}

void settings_refuse_nonsense() {
    Settings s;
    REQUIRE(apply_setting(s, "slots", "12").empty() && s.slots == 12);
    for (const char * bad : {"-1", "", "x", "1.5", "12 ", "99999999999999999999"}) {
        REQUIRE(!apply_setting(s, "slots", bad).empty() && s.slots == 12);
    }
    REQUIRE(!apply_setting(s, "hysteresis", "nan").empty());
    REQUIRE(!apply_setting(s, "hysteresis", "0.5").empty());
    REQUIRE(apply_setting(s, "hysteresis", "1.5").empty() && s.policy.hysteresis == 1.5);
    REQUIRE(!apply_setting(s, "policy", "magic").empty());
    REQUIRE(!apply_setting(s, "slot", "1").empty());
    setenv("HOTCACHE_INTERVAL", "7", 1);
    setenv("HOTCACHE_SLOTS", "many", 1);
    Settings from_environment;
    REQUIRE(!apply_environment(from_environment).empty());
    REQUIRE(from_environment.policy.interval_tokens == 7 && from_environment.slots == 0);
}

}  // namespace

int main(int argc, char ** argv) {
    const int histories = argc > 1 ? std::atoi(argv[1]) : 100;
    capacity_zero_is_off();
    never_more_slots_than_experts();
    loading_slot_serves_nobody();
    pinned_slot_keeps_its_expert();
    dwell_protects_a_newcomer();
    hysteresis_demands_a_hotter_newcomer();
    a_newcomer_needs_its_sightings();
    interval_spaces_the_rebalances();
    fixed_never_evicts();
    lru_evicts_the_longest_unseen();
    heat_prefers_frequent_over_recent();
    budget_is_never_exceeded();
    settings_refuse_nonsense();
    for (int seed = 0; seed < histories; ++seed) { random_histories(static_cast<unsigned>(seed), 1000); }
    std::printf("%d histories of 1000 steps\n", histories);
    return 0;
}
