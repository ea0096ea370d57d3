#include "routing_profile.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <system_error>

namespace hotcache {

namespace {

constexpr char magic[] = "MOETRACE";
constexpr uint32_t known_version = 1;
constexpr size_t fingerprint_bytes = 64;
constexpr uint32_t most_workloads = 64;
constexpr uint32_t most_layers = 4096;
constexpr uint32_t most_experts = 65536;
constexpr uint32_t most_name_bytes = 255;

struct LayerShape {
    int index = 0;
    uint32_t n_experts = 0;
    uint32_t n_used = 0;
};

// What is wrong with a file; thrown and caught in this file only, so that reading need not be a ladder of ifs.
struct Wrong {
    std::string why;
};

// Little-endian reads from a file of known size. Nothing is allocated for what the file is too short to hold.
class Reader {
  public:
    explicit Reader(const std::string & path) {
        std::error_code failed;
        if (!std::filesystem::is_regular_file(path, failed)) { throw Wrong{"there is no such file"}; }
        left_ = std::filesystem::file_size(path, failed);
        in_.open(path, std::ios::binary);
        if (failed || !in_) { throw Wrong{"it cannot be opened"}; }
    }

    uint64_t left() const { return left_; }

    std::string bytes(uint64_t n) {
        take(n);
        std::string read(n, '\0');
        in_.read(read.data(), static_cast<std::streamsize>(n));
        if (!in_) { throw Wrong{"it cannot be read to its end"}; }
        return read;
    }

    uint32_t u32() { return u32s(1).front(); }

    std::vector<uint32_t> u32s(uint64_t n) {
        const std::string raw = bytes(4 * n);
        std::vector<uint32_t> values(n);
        for (size_t i = 0; i < values.size(); ++i) {
            for (size_t b = 0; b < 4; ++b) {
                values[i] |= static_cast<uint32_t>(static_cast<unsigned char>(raw[4 * i + b])) << (8 * b);
            }
        }
        return values;
    }

    // Accounts for bytes that are there but of no interest.
    void take(uint64_t n) {
        if (n > left_) { throw Wrong{"it is cut short"}; }
        left_ -= n;
    }

  private:
    std::ifstream in_;
    uint64_t left_ = 0;
};

uint32_t at_most(uint32_t value, uint32_t least, uint32_t most, const char * what) {
    if (value < least || value > most) {
        throw Wrong{std::to_string(value) + " " + what + ": must be " + std::to_string(least) + " to " +
                    std::to_string(most)};
    }
    return value;
}

std::vector<LayerShape> read_layers(Reader & file, uint32_t n_layers) {
    std::vector<LayerShape> layers;
    std::set<int> indices;
    for (uint32_t i = 0; i < n_layers; ++i) {
        LayerShape layer;
        layer.index = static_cast<int>(at_most(file.u32(), 0, INT32_MAX, "as a layer's number"));
        layer.n_experts = at_most(file.u32(), 1, most_experts, "experts of a layer");
        layer.n_used = at_most(file.u32(), 1, layer.n_experts, "experts used");
        if (!indices.insert(layer.index).second) { throw Wrong{"layer " + std::to_string(layer.index) + " is there twice"}; }
        layers.push_back(layer);
    }
    return layers;
}

std::string read_name(Reader & file) {
    const std::string name = file.bytes(at_most(file.u32(), 1, most_name_bytes, "bytes of a workload's name"));
    const bool prints = std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    if (!prints) { throw Wrong{"a workload's name has control characters"}; }
    return name;
}

RoutingProfile read(Reader & file) {
    if (file.bytes(8) != magic) { throw Wrong{"it is none"}; }
    if (const uint32_t version = file.u32(); version != known_version) {
        throw Wrong{"version " + std::to_string(version) + ", and this engine reads version " +
                    std::to_string(known_version)};
    }
    const uint32_t n_workloads = at_most(file.u32(), 1, most_workloads, "workloads");
    const uint32_t n_layers = at_most(file.u32(), 1, most_layers, "layers");
    if (file.u32() != 0) { throw Wrong{"its reserved field is not 0"}; }

    RoutingProfile profile;
    profile.model = file.bytes(fingerprint_bytes);
    if (!std::all_of(profile.model.begin(), profile.model.end(), [](unsigned char c) { return std::isxdigit(c) != 0; })) {
        throw Wrong{"its model fingerprint is not hexadecimal"};
    }
    const std::vector<LayerShape> layers = read_layers(file, n_layers);
    std::vector<uint32_t> n_tokens;
    for (uint32_t w = 0; w < n_workloads; ++w) {
        const std::string name = read_name(file);
        const auto [workload, is_new] = profile.workloads.try_emplace(name);
        if (!is_new) { throw Wrong{"the workload " + name + " is there twice"}; }
        n_tokens.push_back(file.u32());
        for (const LayerShape & layer : layers) {
            RoutingProfile::Counts & counts = workload->second[layer.index];
            counts = file.u32s(layer.n_experts);
            if (*std::max_element(counts.begin(), counts.end()) > n_tokens.back()) {
                throw Wrong{"an expert is used more often than there are tokens"};
            }
        }
    }
    for (const uint32_t tokens : n_tokens) {
        for (const LayerShape & layer : layers) {
            file.take(uint64_t{tokens} * layer.n_used * (layer.n_experts <= 256 ? 1 : 2));
        }
    }
    if (file.left() > 0) { throw Wrong{"it goes on for " + std::to_string(file.left()) + " bytes too many"}; }
    return profile;
}

}  // namespace

std::variant<std::vector<double>, std::string> RoutingProfile::counts_of(int layer_index,
                                                                         const std::string & workload) const {
    if (!workload.empty() && workloads.count(workload) == 0) {
        std::string names;
        for (const auto & [name, layers] : workloads) { names += (names.empty() ? "" : ", ") + name; }
        return "no such workload in the routing profile; there are " + names;
    }
    std::vector<double> sum;
    for (const auto & [name, layers] : workloads) {
        const auto layer = layers.find(layer_index);
        if (layer == layers.end() || !(workload.empty() || workload == name)) { continue; }
        sum.resize(layer->second.size(), 0.0);
        std::transform(sum.begin(), sum.end(), layer->second.begin(), sum.begin(), std::plus<>());
    }
    return sum;
}

std::variant<RoutingProfile, std::string> read_routing_profile(const std::string & path) {
    try {
        Reader file(path);
        return read(file);
    } catch (const Wrong & wrong) {
        return wrong.why;
    }
}

}  // namespace hotcache
