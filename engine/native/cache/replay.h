// Hits that recorded routing would have had: under a policy, and at best.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "slot_table.h"

namespace hotcache {

// One layer's recorded routing: the ids of the experts each token used, token after token. Does not own them.
struct RoutingTrace {
    const int32_t * ids = nullptr;  // n_tokens * n_used
    size_t n_tokens = 0;
    int n_used = 0;
    int n_experts = 0;

    const int32_t * begin(size_t token) const { return ids + token * static_cast<size_t>(n_used); }
    const int32_t * end(size_t token) const { return begin(token + 1); }
};

// Empty when every token names `n_used` different experts of the layer; else the sentence that says what is wrong.
std::string check_trace(const RoutingTrace & trace);

// Hits, counted from token `n_skip` on, that `policy` has from empty slots when it is handed the tokens one by one. All
// pairs of a token are looked up before anything moves; a promotion arrives when the token after it has been looked up.
// The trace must have passed `check_trace`.
int64_t replay(const RoutingTrace & trace, int n_slots, size_t n_skip, const PolicySettings & policy);

// The most hits, counted from token `n_skip` on, of all caches that load experts only when a token uses them, each at
// once and for free: Belady's, which keeps what is used again soonest and need not take in what it has just looked up.
int64_t replay_optimal(const RoutingTrace & trace, int n_slots, size_t n_skip);

}  // namespace hotcache
