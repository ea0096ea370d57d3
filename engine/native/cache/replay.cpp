#include "replay.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>
#include <vector>

namespace hotcache {

namespace {

constexpr int most_experts = 65536;
constexpr size_t never = static_cast<size_t>(-1);

// For every pair of the trace, the first later token from `n_skip` on that uses the same expert.
std::vector<size_t> next_uses(const RoutingTrace & trace, size_t n_skip) {
    std::vector<size_t> next(trace.n_tokens * static_cast<size_t>(trace.n_used));
    std::vector<size_t> next_of_expert(static_cast<size_t>(trace.n_experts), never);
    for (size_t token = trace.n_tokens; token-- > 0;) {
        for (const int32_t * id = trace.begin(token); id != trace.end(token); ++id) {
            next[static_cast<size_t>(id - trace.ids)] = next_of_expert[*id];
            if (token >= n_skip) { next_of_expert[*id] = token; }
        }
    }
    return next;
}

}  // namespace

std::string check_trace(const RoutingTrace & trace) {
    if (trace.n_experts < 1 || trace.n_experts > most_experts) {
        return std::to_string(trace.n_experts) + " experts: must be 1 to " + std::to_string(most_experts);
    }
    if (trace.n_used < 1 || trace.n_used > trace.n_experts) {
        return std::to_string(trace.n_used) + " experts used of " + std::to_string(trace.n_experts) + ": must be 1 to all";
    }
    std::vector<size_t> last_token(static_cast<size_t>(trace.n_experts), never);
    for (size_t token = 0; token < trace.n_tokens; ++token) {
        for (const int32_t * id = trace.begin(token); id != trace.end(token); ++id) {
            const bool known = *id >= 0 && *id < trace.n_experts;
            if (!known || last_token[*id] == token) {
                return "token " + std::to_string(token) + " names expert " + std::to_string(*id) +
                       (known ? " twice" : " of " + std::to_string(trace.n_experts));
            }
            last_token[*id] = token;
        }
    }
    return {};
}

int64_t replay(const RoutingTrace & trace, int n_slots, size_t n_skip, const PolicySettings & policy) {
    SlotTable table(trace.n_experts, n_slots);
    std::vector<Promotion> loading;
    int64_t hits = 0;
    for (size_t token = 0; token < trace.n_tokens; ++token) {
        for (const int32_t * id = trace.begin(token); id != trace.end(token); ++id) {
            table.see(*id);
            hits += token >= n_skip && table.slot_of(*id) != SlotTable::none ? 1 : 0;
        }
        for (const Promotion & promotion : loading) { table.arrived(promotion.slot); }
        loading = table.advance(1, policy);
    }
    return hits;
}

int64_t replay_optimal(const RoutingTrace & trace, int n_slots, size_t n_skip) {
    const std::vector<size_t> next = next_uses(trace, n_skip);
    std::set<std::pair<size_t, int32_t>> kept;  // by their next use, soonest first
    std::vector<size_t> kept_until(static_cast<size_t>(trace.n_experts), 0);
    int64_t hits = 0;
    for (size_t token = 0; token < trace.n_tokens; ++token) {
        for (const int32_t * id = trace.begin(token); id != trace.end(token); ++id) {
            const bool hit = kept.erase({kept_until[*id], *id}) > 0;
            hits += token >= n_skip && hit ? 1 : 0;
            kept_until[*id] = next[static_cast<size_t>(id - trace.ids)];
            kept.insert({kept_until[*id], *id});
        }
        // Only now, so that all pairs of the token met the same cache.
        while (kept.size() > static_cast<size_t>(std::max(n_slots, 0))) { kept.erase(std::prev(kept.end())); }
    }
    return hits;
}

}  // namespace hotcache
