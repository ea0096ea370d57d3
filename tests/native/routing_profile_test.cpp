// Reading routing profiles: good ones, cut ones, and ones whose bytes were changed. Usage: routing_profile_test FOLDER
#include <cstdint>
#include <fstream>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "cache/routing_profile.h"
#include "require.h"

using namespace hotcache;

namespace {

using Counts = RoutingProfile::Counts;

struct Layer {
    uint32_t index, n_experts, n_used;
};

struct Workload {
    std::string name;
    uint32_t n_tokens;
    std::vector<Counts> counts;  // one a layer
};

std::string u32(uint32_t value) {
    std::string bytes;
    for (int shift = 0; shift < 32; shift += 8) { bytes += static_cast<char>(value >> shift & 0xff); }
    return bytes;
}

std::string profile_of(const std::vector<Layer> & layers, const std::vector<Workload> & workloads) {
    std::string bytes = "MOETRACE" + u32(1) + u32(static_cast<uint32_t>(workloads.size())) +
                        u32(static_cast<uint32_t>(layers.size())) + u32(0) + std::string(64, 'a');
    for (const Layer & layer : layers) { bytes += u32(layer.index) + u32(layer.n_experts) + u32(layer.n_used); }
    for (const Workload & workload : workloads) {
        bytes += u32(static_cast<uint32_t>(workload.name.size())) + workload.name + u32(workload.n_tokens);
        for (const Counts & counts : workload.counts) {
            for (const uint32_t count : counts) { bytes += u32(count); }
        }
    }
    for (const Workload & workload : workloads) {
        for (const Layer & layer : layers) {
            const size_t id_bytes = layer.n_experts <= 256 ? 1 : 2;
            bytes += std::string(workload.n_tokens * layer.n_used * id_bytes, '\1');
        }
    }
    return bytes;
}

// Layers 3 and 7, three workloads.
std::string good() {
    return profile_of({{3, 4, 2}, {7, 3, 1}}, {{"code", 10, {{10, 5, 5, 0}, {10, 0, 0}}},
                                               {"prose", 4, {{0, 0, 4, 4}, {1, 2, 1}}},
                                               {"caf\xc3\xa9", 0, {{0, 0, 0, 0}, {0, 0, 0}}}});
}

class Folder {
  public:
    explicit Folder(std::string path) : path_(std::move(path)) {}

    std::variant<RoutingProfile, std::string> read(const std::string & bytes) const {
        const std::string path = path_ + "/profile.bin";
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
        return read_routing_profile(path);
    }

    // The reason for which the file is refused.
    std::string refusal(const std::string & bytes) const {
        const auto result = read(bytes);
        REQUIRE(std::holds_alternative<std::string>(result));
        const std::string why = std::get<std::string>(result);
        REQUIRE(!why.empty());
        return why;
    }

    bool refuses(const std::string & bytes, const std::string & because) const {
        return refusal(bytes).find(because) != std::string::npos;
    }

    const std::string & path() const { return path_; }

  private:
    std::string path_;
};

std::vector<double> counts(const RoutingProfile & profile, int layer, const std::string & workload) {
    const auto result = profile.counts_of(layer, workload);
    REQUIRE(std::holds_alternative<std::vector<double>>(result));
    return std::get<std::vector<double>>(result);
}

void a_good_profile_is_read_whole(const Folder & folder) {
    const auto result = folder.read(good());
    REQUIRE(std::holds_alternative<RoutingProfile>(result));
    const auto & profile = std::get<RoutingProfile>(result);
    REQUIRE(profile.model == std::string(64, 'a') && profile.workloads.size() == 3);
    REQUIRE(counts(profile, 3, "code") == std::vector<double>({10, 5, 5, 0}));
    REQUIRE(counts(profile, 7, "prose") == std::vector<double>({1, 2, 1}));
    REQUIRE(counts(profile, 3, "") == std::vector<double>({10, 5, 9, 4}));
    REQUIRE(counts(profile, 7, "") == std::vector<double>({11, 2, 1}));
    REQUIRE(counts(profile, 5, "").empty() && counts(profile, 5, "code").empty());
}

void an_unknown_workload_is_answered_with_the_names(const Folder & folder) {
    const auto result = std::get<RoutingProfile>(folder.read(good())).counts_of(3, "chat");
    REQUIRE(std::holds_alternative<std::string>(result));
    const std::string & why = std::get<std::string>(result);
    REQUIRE(why.find("code") != std::string::npos && why.find("prose") != std::string::npos);
}

void many_experts_take_two_bytes_an_id(const Folder & folder) {
    const std::string bytes = profile_of({{0, 257, 2}}, {{"w", 3, {Counts(257, 1)}}});
    REQUIRE(std::holds_alternative<RoutingProfile>(folder.read(bytes)));
    REQUIRE(folder.refuses(bytes.substr(0, bytes.size() - 1), "cut short"));
    const std::string fewer = profile_of({{0, 256, 2}}, {{"w", 3, {Counts(256, 1)}}});
    REQUIRE(fewer.size() == bytes.size() - 4 - 6);
    REQUIRE(std::holds_alternative<RoutingProfile>(folder.read(fewer)));
}

void every_shorter_file_is_refused(const Folder & folder) {
    const std::string bytes = good();
    for (size_t n = 0; n < bytes.size(); ++n) { REQUIRE(folder.refuses(bytes.substr(0, n), "cut short")); }
    REQUIRE(folder.refuses(bytes + '\0', "1 bytes too many"));
}

// `bytes` with four of them, from `at` on, replaced by a number.
std::string with(std::string bytes, size_t at, uint32_t value) { return bytes.replace(at, 4, u32(value)); }

void each_field_is_checked(const Folder & folder) {
    const std::string bytes = good();
    REQUIRE(folder.refuses(with(bytes, 0, 0), "it is none"));
    REQUIRE(folder.refuses(with(bytes, 8, 2), "version 2"));
    REQUIRE(folder.refuses(with(bytes, 12, 0), "workloads"));
    REQUIRE(folder.refuses(with(bytes, 12, 65), "workloads"));
    REQUIRE(folder.refuses(with(bytes, 16, 4097), "layers"));
    REQUIRE(folder.refuses(with(bytes, 20, 1), "reserved"));
    REQUIRE(folder.refuses(with(bytes, 24, 0x20202020), "hexadecimal"));
    const size_t table = 24 + 64;
    REQUIRE(folder.refuses(with(bytes, table, 0xffffffff), "layer's number"));
    REQUIRE(folder.refuses(with(bytes, table, 7), "layer 7 is there twice"));
    REQUIRE(folder.refuses(with(bytes, table + 4, 0), "experts"));
    REQUIRE(folder.refuses(with(bytes, table + 4, 65537), "experts"));
    REQUIRE(folder.refuses(with(bytes, table + 8, 5), "experts used"));
    const size_t name = table + 24;
    REQUIRE(folder.refuses(with(bytes, name, 0), "name"));
    REQUIRE(folder.refuses(with(bytes, name, 256), "name"));
    REQUIRE(folder.refuses(with(bytes, name + 4, 0x0a0a0a0a), "control"));
    REQUIRE(folder.refuses(with(bytes, name + 8, 9), "more often"));
    REQUIRE(folder.refuses(with(bytes, name + 8, 11), "cut short"));
    const Workload twice{"code", 0, {{0}}};
    REQUIRE(folder.refuses(profile_of({{0, 1, 1}}, {twice, twice}), "code is there twice"));
}

// What a header promises is never allocated before the file is known to be long enough.
void huge_promises_cost_nothing(const Folder & folder) {
    std::string bytes = "MOETRACE" + u32(1) + u32(64) + u32(4096) + u32(0) + std::string(64, 'f');
    for (uint32_t layer = 0; layer < 4096; ++layer) { bytes += u32(layer) + u32(65536) + u32(65536); }
    REQUIRE(folder.refuses(bytes + u32(1) + "w" + u32(0xffffffff), "cut short"));
    const std::string busy = profile_of({{0, 65536, 65536}}, {{"w", 0, {Counts(65536, 0)}}});
    REQUIRE(folder.refuses(with(busy, 24 + 64 + 12 + 5, 0xffffffff), "cut short"));
}

void what_is_no_file_is_refused(const Folder & folder) {
    for (const std::string & path : {folder.path(), folder.path() + "/none", std::string()}) {
        REQUIRE(std::holds_alternative<std::string>(read_routing_profile(path)));
    }
}

// Changed bytes give a sentence or a profile that can be asked, never a crash.
void changed_bytes_do_no_harm(const Folder & folder, int rounds) {
    std::mt19937 rng(1);
    const std::string bytes = good();
    int refused = 0;
    for (int i = 0; i < rounds; ++i) {
        std::string changed = bytes;
        for (unsigned flips = 1 + rng() % 4; flips > 0; --flips) {
            changed[rng() % changed.size()] ^= static_cast<char>(1 << rng() % 8);
        }
        if (rng() % 4 == 0) { changed.resize(rng() % changed.size()); }
        const auto result = folder.read(changed);
        if (const auto * profile = std::get_if<RoutingProfile>(&result)) {
            for (const auto & [name, layers] : profile->workloads) {
                for (const auto & [layer, recorded] : layers) {
                    REQUIRE(counts(*profile, layer, name).size() == recorded.size());
                }
            }
        } else {
            ++refused;
        }
    }
    REQUIRE(refused > rounds / 4);
}

}  // namespace

int main(int argc, char ** argv) {
    REQUIRE(argc > 1);
    const Folder folder(argv[1]);
    a_good_profile_is_read_whole(folder);
    an_unknown_workload_is_answered_with_the_names(folder);
    many_experts_take_two_bytes_an_id(folder);
    every_shorter_file_is_refused(folder);
    each_field_is_checked(folder);
    huge_promises_cost_nothing(folder);
    what_is_no_file_is_refused(folder);
    changed_bytes_do_no_harm(folder, 2000);
    return 0;
}
