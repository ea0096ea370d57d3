// What each rule of the slot table promises, one small history a rule.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "cache/settings.h"
#include "cache/slot_table.h"
#include "require.h"

using namespace hotcache;

namespace {

PolicySettings eager() {
    PolicySettings p;
    p.interval_tokens = 1;
    p.promotions = 4;
    p.hysteresis = 1.0;
    p.min_sightings = 1;
    p.dwell_tokens = 0;
    p.half_life_tokens = 1e9;
    return p;
}

PolicySettings eager(Ranking ranking) {
    PolicySettings p = eager();
    p.ranking = ranking;
    return p;
}

constexpr Ranking every_ranking[] = {Ranking::heat, Ranking::lru, Ranking::lfru, Ranking::fixed};

// One token that uses `experts`; what is promoted arrives at once.
std::vector<Promotion> token(SlotTable & table, const std::vector<int> & experts, const PolicySettings & policy) {
    for (const int e : experts) { table.see(e); }
    const auto promotions = table.advance(1, policy);
    for (const Promotion & p : promotions) { table.arrived(p.slot); }
    return promotions;
}

bool resident(const SlotTable & table, int expert) { return table.slot_of(expert) != SlotTable::none; }

void capacity_zero_is_off() {
    for (const Ranking ranking : every_ranking) {
        SlotTable table(8, 0);
        for (int i = 0; i < 100; ++i) {
            REQUIRE(token(table, {i % 8}, eager(ranking)).empty());
            REQUIRE(!resident(table, i % 8));
        }
        table.seed(std::vector<double>(8, 1.0));
        REQUIRE(table.fill().empty());
    }
}

void never_more_slots_than_experts() {
    REQUIRE(SlotTable(4, 100).n_slots() == 4);
    REQUIRE(SlotTable(4, -1).n_slots() == 0);
    REQUIRE(SlotTable(0, 3).n_slots() == 0);
}

void loading_slot_serves_nobody() {
    SlotTable table(4, 2);
    table.see(1);
    const auto moves = table.advance(1, eager());
    REQUIRE(moves.size() == 1 && moves[0].expert == 1);
    REQUIRE(!resident(table, 1));
    table.arrived(moves[0].slot);
    REQUIRE(table.slot_of(1) == moves[0].slot);
}

void pinned_slot_keeps_its_expert() {
    SlotTable table(4, 1);
    token(table, {0}, eager());
    table.pin(0);
    for (int i = 0; i < 50; ++i) { REQUIRE(token(table, {1}, eager()).empty()); }
    table.unpin(0);
    REQUIRE(token(table, {1}, eager()).size() == 1);
}

void dwell_protects_a_newcomer() {
    SlotTable table(4, 1);
    token(table, {0}, eager());
    PolicySettings p = eager();
    p.dwell_tokens = 10;
    int evicted_after = 0;
    for (int i = 1; i <= 20 && evicted_after == 0; ++i) {
        if (!token(table, {1}, p).empty()) { evicted_after = i; }
    }
    REQUIRE(evicted_after == 10);
}

void hysteresis_demands_a_hotter_newcomer() {
    for (const Ranking ranking : {Ranking::heat, Ranking::lfru}) {
        PolicySettings p = eager(ranking);
        p.hysteresis = 3.0;
        SlotTable table(8, 1);
        token(table, {0}, p);
        token(table, {0}, p);
        for (int seen = 1; seen <= 6; ++seen) { REQUIRE(token(table, {1}, p).empty()); }
        REQUIRE(token(table, {1}, p).size() == 1);  // 7 ≥ 3 × 2 + ½
    }
}

void lru_hysteresis_demands_a_more_recent_newcomer() {
    PolicySettings p = eager(Ranking::lru);
    p.hysteresis = 4.0;
    SlotTable table(4, 1);
    token(table, {0}, p);
    for (int age = 2; age <= 4; ++age) { REQUIRE(token(table, {1}, p).empty()); }
    REQUIRE(token(table, {1}, p).size() == 1);  // last seen 5 tokens ago against 1
}

void a_newcomer_needs_its_sightings() {
    for (const Ranking ranking : {Ranking::heat, Ranking::lru, Ranking::lfru}) {
        PolicySettings p = eager(ranking);
        p.min_sightings = 3;
        p.half_life_tokens = 50.0;
        SlotTable table(4, 1);
        token(table, {0}, p);
        table.advance(1000, p);  // the resident is cold by now
        for (int seen = 1; seen <= 3; ++seen) { REQUIRE(token(table, {1}, p).empty() == (seen < 3)); }
    }
}

void sightings_of_long_ago_do_not_count() {
    for (const Ranking ranking : {Ranking::heat, Ranking::lru, Ranking::lfru}) {
        PolicySettings p = eager(ranking);
        p.min_sightings = 2;
        p.half_life_tokens = 50.0;
        SlotTable table(4, 1);
        token(table, {0}, p);
        for (int i = 0; i < 20; ++i) {
            REQUIRE(token(table, {1}, p).empty());
            table.advance(1000, p);
        }
    }
}

void an_empty_slot_takes_whoever_was_seen() {
    for (const Ranking ranking : every_ranking) {
        PolicySettings p = eager(ranking);
        p.min_sightings = 1000;
        p.hysteresis = 1000.0;
        SlotTable table(8, 3);
        REQUIRE(token(table, {}, p).empty());
        REQUIRE(token(table, {5, 7}, p).size() == 2);
    }
}

void interval_spaces_the_rebalances() {
    PolicySettings p = eager();
    p.interval_tokens = 5;
    SlotTable table(8, 8);
    int rebalances = 0;
    for (int i = 0; i < 50; ++i) {
        const auto moves = token(table, {i % 8}, p);
        rebalances += moves.empty() ? 0 : 1;
        REQUIRE(moves.size() <= 4);
    }
    REQUIRE(rebalances == 2);  // 8 experts, at most 4 a time
}

void the_caller_bounds_the_promotions() {
    PolicySettings p = eager();
    p.interval_tokens = 10;
    SlotTable table(8, 8);
    for (int e = 0; e < 8; ++e) { table.see(e); }
    REQUIRE(table.advance(10, p, 0).empty());
    REQUIRE(table.advance(1, p, -1).empty());
    REQUIRE(table.advance(1, p, 3).size() == 3);  // the rebalance was still due
    REQUIRE(table.advance(9, p, 3).empty());
    REQUIRE(table.advance(1, p).size() == 4);
}

// Whoever had to wait for others' promotions is promoted next; whoever was found not worth it, when seen again.
void only_who_was_seen_is_promoted() {
    PolicySettings p = eager();
    SlotTable table(8, 4);
    for (int e = 0; e < 6; ++e) { table.see(e); }
    REQUIRE(table.advance(1, p, 3).size() == 3);
    REQUIRE(table.advance(1, p, 3).size() == 1);
    table.cancel(0);
    REQUIRE(table.advance(1, p, 3).empty());
    table.see(5);
    REQUIRE(table.advance(1, p, 3).at(0).expert == 5);
}

void fixed_never_evicts() {
    SlotTable table(8, 2);
    token(table, {0, 1}, eager(Ranking::fixed));
    for (int i = 0; i < 100; ++i) { REQUIRE(token(table, {5}, eager(Ranking::fixed)).empty()); }
    REQUIRE(table.evictions() == 0 && resident(table, 0) && resident(table, 1));
}

void lru_evicts_the_longest_unseen() {
    SlotTable table(4, 2);
    token(table, {0, 0, 0, 0}, eager(Ranking::lru));
    token(table, {1}, eager(Ranking::lru));
    const auto moves = token(table, {2}, eager(Ranking::lru));
    REQUIRE(moves.size() == 1 && moves[0].expert == 2);
    REQUIRE(!resident(table, 0) && resident(table, 1));
}

void heat_prefers_frequent_over_recent() {
    SlotTable table(4, 1);
    for (int i = 0; i < 10; ++i) { token(table, {0}, eager()); }
    REQUIRE(token(table, {1}, eager()).empty());
    REQUIRE(resident(table, 0));
}

// Of two residents that are as cold as the rest, the older goes; one well above the mean stays though it is the oldest.
void lfru_protects_the_frequent_from_the_recent() {
    SlotTable table(16, 3);
    for (int i = 0; i < 20; ++i) { token(table, {0}, eager(Ranking::lfru)); }
    token(table, {1}, eager(Ranking::lfru));
    token(table, {2}, eager(Ranking::lfru));
    token(table, {3, 3}, eager(Ranking::lfru));
    REQUIRE(resident(table, 0) && !resident(table, 1) && resident(table, 2) && resident(table, 3));
}

void fading_needs_no_steady_half_life() {
    PolicySettings p = eager();
    SlotTable table(4, 1);
    for (int i = 0; i < 8; ++i) { token(table, {0}, p); }
    p.half_life_tokens = 1.0;
    table.advance(3, p);  // 8 fades to 1
    p.half_life_tokens = 1e9;
    REQUIRE(token(table, {1}, p).empty());
    REQUIRE(token(table, {1}, p).size() == 1);  // 2 ≥ 1 + ½
}

void fill_takes_the_hottest_then_the_rest_by_number() {
    SlotTable table(6, 5);
    table.see(4);
    table.see(4);
    table.see(2);
    REQUIRE(table.fill(0).empty() && table.fill(-1).empty());
    auto moves = table.fill(2);
    REQUIRE(moves.size() == 2);
    for (const Promotion & p : table.fill()) { moves.push_back(p); }
    REQUIRE(moves.size() == 5);
    const int expected[] = {4, 2, 0, 1, 3};
    for (size_t i = 0; i < moves.size(); ++i) {
        REQUIRE(moves[i].expert == expected[i] && moves[i].slot == static_cast<int>(i));
        REQUIRE(!resident(table, moves[i].expert));
        table.arrived(moves[i].slot);
        REQUIRE(table.slot_of(moves[i].expert) == moves[i].slot);
    }
    REQUIRE(table.fill().empty());
}

void a_wholly_resident_layer_never_moves_again() {
    for (const Ranking ranking : every_ranking) {
        SlotTable table(6, 6);
        for (const Promotion & p : table.fill()) { table.arrived(p.slot); }
        for (int i = 0; i < 100; ++i) { REQUIRE(token(table, {i % 6}, eager(ranking)).empty()); }
        REQUIRE(table.evictions() == 0);
    }
}

void a_cancelled_promotion_leaves_its_slot_empty() {
    SlotTable table(4, 1);
    table.see(1);
    const int slot = table.advance(1, eager()).at(0).slot;
    table.cancel(slot);
    table.arrived(slot);  // too late: there is nothing to arrive
    REQUIRE(!resident(table, 1));
    REQUIRE(token(table, {1}, eager()).size() == 1);
    table.cancel(slot);  // has arrived
    REQUIRE(table.slot_of(1) == slot);
}

void a_seeded_table_ranks_as_recorded() {
    SlotTable table(6, 3);
    table.seed({0.0, 7.0, 3.0, 0.0, 9.0, std::nan(""), 1e9});  // one too many, which counts as none
    const auto moves = table.fill();
    REQUIRE(moves[0].expert == 4 && moves[1].expert == 1 && moves[2].expert == 2);
    SlotTable unseeded(6, 3);
    unseeded.seed({-1.0, std::numeric_limits<double>::infinity()});
    REQUIRE(unseeded.fill()[0].expert == 0);
}

// However many tokens were recorded, a few hundred live ones of other experts take their slots.
void live_traffic_overrules_a_seed() {
    for (const Ranking ranking : {Ranking::heat, Ranking::lru, Ranking::lfru}) {
        PolicySettings p;
        p.ranking = ranking;
        SlotTable table(64, 8);
        std::vector<double> counts(64, 10.0);
        for (int e = 0; e < 8; ++e) { counts[static_cast<size_t>(e)] = 1e9; }
        table.seed(counts);
        for (const Promotion & m : table.fill()) { table.arrived(m.slot); }
        const int half_lives = 5;
        for (int i = 0; i < half_lives * p.half_life_tokens; ++i) { token(table, {8, 9, 10, 11, 12, 13, 14, 15}, p); }
        for (int e = 8; e < 16; ++e) { REQUIRE(resident(table, e)); }
    }
}

void a_table_inherits_what_another_has_seen() {
    SlotTable old(6, 2);
    for (int i = 0; i < 5; ++i) { token(old, {3, 5}, eager()); }
    token(old, {5}, eager());
    SlotTable table(6, 1);
    token(table, {0, 0, 0}, eager());
    table.inherit(old);
    REQUIRE(resident(table, 0) && !resident(table, 5));  // slots are not inherited
    const auto moves = token(table, {5}, eager());
    REQUIRE(moves.size() == 1 && moves[0].expert == 5);
    SlotTable other_model(7, 1);
    token(other_model, {0, 0, 0}, eager());
    other_model.inherit(old);
    REQUIRE(token(other_model, {5}, eager()).empty());
}

// Flat routing gives no reason to move: what little the defaults promote is chance. Returns promotions a token.
double flat_promotions(const PolicySettings & policy) {
    std::mt19937 rng(1);
    SlotTable table(128, 32);
    size_t promoted = 0;
    for (int i = 0; i < 4000; ++i) {
        std::set<int> experts;
        while (experts.size() < 8) { experts.insert(static_cast<int>(rng() % 128)); }
        const auto moves = token(table, {experts.begin(), experts.end()}, policy);
        promoted += i < 500 ? 0 : moves.size();
    }
    return static_cast<double>(promoted) / 3500.0;
}

void flat_routing_moves_little() {
    PolicySettings jumpy;
    jumpy.hysteresis = 1.0;
    jumpy.min_sightings = 1;
    REQUIRE(flat_promotions(PolicySettings{}) < 0.3);
    REQUIRE(flat_promotions(jumpy) > 0.9);
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
    REQUIRE(apply_setting(s, "policy", "lfru").empty() && s.policy.ranking == Ranking::lfru);
    REQUIRE(!apply_setting(s, "slot", "1").empty());
    setenv("HOTCACHE_INTERVAL", "7", 1);
    setenv("HOTCACHE_SLOTS", "many", 1);
    Settings from_environment;
    REQUIRE(!apply_environment(from_environment).empty());
    REQUIRE(from_environment.policy.interval_tokens == 7 && from_environment.slots == 0);
}

void settings_are_read_line_by_line() {
    Settings s;
    REQUIRE(apply_settings(s, "policy=lru\n\ninterval=9").empty());
    REQUIRE(s.policy.ranking == Ranking::lru && s.policy.interval_tokens == 9);
    REQUIRE(apply_settings(s, "").empty());
    REQUIRE(!apply_settings(s, "interval").empty());
    REQUIRE(!apply_settings(s, "interval=8\ninterval=x").empty() && s.policy.interval_tokens == 8);
}

}  // namespace

int main() {
    capacity_zero_is_off();
    never_more_slots_than_experts();
    loading_slot_serves_nobody();
    pinned_slot_keeps_its_expert();
    dwell_protects_a_newcomer();
    hysteresis_demands_a_hotter_newcomer();
    lru_hysteresis_demands_a_more_recent_newcomer();
    a_newcomer_needs_its_sightings();
    sightings_of_long_ago_do_not_count();
    an_empty_slot_takes_whoever_was_seen();
    interval_spaces_the_rebalances();
    the_caller_bounds_the_promotions();
    only_who_was_seen_is_promoted();
    fixed_never_evicts();
    lru_evicts_the_longest_unseen();
    heat_prefers_frequent_over_recent();
    lfru_protects_the_frequent_from_the_recent();
    fading_needs_no_steady_half_life();
    fill_takes_the_hottest_then_the_rest_by_number();
    a_wholly_resident_layer_never_moves_again();
    a_cancelled_promotion_leaves_its_slot_empty();
    a_seeded_table_ranks_as_recorded();
    live_traffic_overrules_a_seed();
    a_table_inherits_what_another_has_seen();
    flat_routing_moves_little();
    settings_refuse_nonsense();
    settings_are_read_line_by_line();
    return 0;
}
