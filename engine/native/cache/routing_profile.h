// Recorded routing: how often each expert of each layer was used, by workload. Read from a file, which is not trusted.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace hotcache {

struct RoutingProfile {
    using Counts = std::vector<uint32_t>;  // tokens that used the expert, one an expert

    std::string model;  // fingerprint of the model it was recorded with, 64 hexadecimal digits
    std::map<std::string, std::map<int, Counts>> workloads;  // name → layer index → counts

    // Counts of one layer, of `workload` or, when that is empty, of all workloads together; no counts at all for a layer
    // that was not recorded. Or the sentence that says that there is no such workload.
    std::variant<std::vector<double>, std::string> counts_of(int layer_index, const std::string & workload) const;
};

// Reads the counts of a routing profile and leaves out the token-by-token ids behind them. Returns the profile or the
// sentence that says what is wrong with the file, which must be whole: neither shorter nor longer than its header says.
std::variant<RoutingProfile, std::string> read_routing_profile(const std::string & path);

}  // namespace hotcache
