#include "settings.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "config_file.h"

namespace hotcache {

namespace {

constexpr std::array keys = {"device",   "cold_device", "slots",        "bytes",     "spread",        "whole_layers",
                             "profile",  "workload",    "reserve",      "in_flight", "path",          "prefill",
                             "staging",  "repack",      "prefill_heat", "guard",     "policy",        "interval",
                             "dwell",    "hysteresis",  "promotions",   "half_life", "min_sightings", "hold",
                             "ahead"};

template <typename Value>
struct Named {
    const char * name;
    Value value;
};

constexpr std::array policies = {Named<Ranking>{"heat", Ranking::heat}, Named<Ranking>{"lru", Ranking::lru},
                                 Named<Ranking>{"lfru", Ranking::lfru}, Named<Ranking>{"static", Ranking::fixed}};
constexpr std::array spreads = {Named<Spread>{"flat", Spread::flat}, Named<Spread>{"coverage", Spread::coverage}};
constexpr std::array paths = {Named<Path>{"auto", Path::automatic}, Named<Path>{"host", Path::host},
                              Named<Path>{"device", Path::device}};
constexpr std::array prefills = {Named<Prefill>{"auto", Prefill::automatic}, Named<Prefill>{"stream", Prefill::stream},
                                 Named<Prefill>{"cold", Prefill::cold}, Named<Prefill>{"scheduler", Prefill::scheduler}};
constexpr std::array choices = {Named<Choice>{"auto", Choice::automatic}, Named<Choice>{"0", Choice::no},
                                Named<Choice>{"1", Choice::yes}};
constexpr std::array switches = {Named<bool>{"0", false}, Named<bool>{"1", true}};

template <typename Value, size_t n>
std::string parse_choice(const std::string & key, const std::string & text, const std::array<Named<Value>, n> & choices,
                         Value & out) {
    std::string names;
    for (size_t i = 0; i < n; ++i) {
        if (text == choices[i].name) {
            out = choices[i].value;
            return {};
        }
        names += std::string(i == 0 ? "" : i + 1 == n ? " or " : ", ") + choices[i].name;
    }
    return key + "=" + text + ": must be " + names;
}

template <typename Number>
std::string parse_number(const std::string & key, const std::string & text, double low, double high, Number & out) {
    Number value{};
    const char * end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    const auto as_double = static_cast<double>(value);
    if (error != std::errc() || stop != end || !std::isfinite(as_double) || as_double < low || as_double > high) {
        auto bound = [](double b) {
            return b == std::floor(b) ? std::to_string(static_cast<long long>(b)) : std::to_string(b);
        };
        return key + "=" + text + ": must be a number from " + bound(low) + " to " + bound(high);
    }
    out = value;
    return {};
}

std::string parse_bytes(const std::string & key, const std::string & text, int64_t & out) {
    if (text == "auto") {
        out = Settings::automatic;
        return {};
    }
    const std::string problem = parse_number(key, text, 0, 1e15, out);
    return problem.empty() ? problem : problem + ", or auto";
}

}  // namespace

bool Settings::changes_slots(const Settings & other) const {
    return device != other.device || cold_device != other.cold_device || slots != other.slots ||
           budget_bytes != other.budget_bytes || spread != other.spread || whole_layers != other.whole_layers ||
           profile != other.profile || workload != other.workload || reserve_bytes != other.reserve_bytes ||
           path != other.path || repack != other.repack;
}

std::string apply_setting(Settings & settings, const std::string & key, const std::string & value) {
    PolicySettings & policy = settings.policy;
    if (key == "device") {
        settings.device = value;
    } else if (key == "cold_device") {
        settings.cold_device = value;
    } else if (key == "profile") {
        settings.profile = value;
    } else if (key == "workload") {
        settings.workload = value;
    } else if (key == "slots") {
        return parse_number(key, value, 0, 65536, settings.slots);
    } else if (key == "bytes") {
        return parse_number(key, value, 0, 1e15, settings.budget_bytes);
    } else if (key == "spread") {
        return parse_choice(key, value, spreads, settings.spread);
    } else if (key == "whole_layers") {
        return parse_number(key, value, 0, 65536, settings.whole_layers);
    } else if (key == "reserve") {
        return parse_bytes(key, value, settings.reserve_bytes);
    } else if (key == "in_flight") {
        return parse_number(key, value, 0, 1e15, settings.in_flight_bytes);
    } else if (key == "path") {
        return parse_choice(key, value, paths, settings.path);
    } else if (key == "prefill") {
        return parse_choice(key, value, prefills, settings.prefill);
    } else if (key == "staging") {
        return parse_bytes(key, value, settings.staging_bytes);
    } else if (key == "repack") {
        return parse_choice(key, value, switches, settings.repack);
    } else if (key == "prefill_heat") {
        return parse_choice(key, value, switches, settings.prefill_heat);
    } else if (key == "hold") {
        return parse_choice(key, value, choices, settings.hold);
    } else if (key == "ahead") {
        return parse_choice(key, value, choices, settings.ahead);
    } else if (key == "guard") {
        return parse_choice(key, value, switches, settings.guard);
    } else if (key == "policy") {
        return parse_choice(key, value, policies, policy.ranking);
    } else if (key == "interval") {
        return parse_number(key, value, 1, 1000000, policy.interval_tokens);
    } else if (key == "hysteresis") {
        return parse_number(key, value, 1, 1000000, policy.hysteresis);
    } else if (key == "promotions") {
        return parse_number(key, value, 0, 65536, policy.promotions);
    } else if (key == "min_sightings") {
        return parse_number(key, value, 1, 1000000, policy.min_sightings);
    } else if (key == "dwell") {
        return parse_number(key, value, 0, 1000000, policy.dwell_tokens);
    } else if (key == "half_life") {
        return parse_number(key, value, 0.5, 1e9, policy.half_life_tokens);
    } else {
        std::string known;
        for (const char * k : keys) { known += known.empty() ? k : std::string(", ") + k; }
        return key + ": no such setting; there are " + known;
    }
    return {};
}

std::string apply_settings(Settings & settings, const std::string & lines) {
    std::istringstream in(lines);
    for (std::string line; std::getline(in, line);) {
        if (line.empty()) { continue; }
        const size_t equals = line.find('=');
        if (equals == std::string::npos) { return line + ": must be key=value"; }
        std::string problem = apply_setting(settings, line.substr(0, equals), line.substr(equals + 1));
        if (!problem.empty()) { return problem; }
    }
    return {};
}

std::string apply_environment(Settings & settings) {
    const char * file = std::getenv("HOTCACHE_CONFIG");
    std::string problems = file == nullptr || *file == '\0' ? std::string() : apply_config_file(settings, file);
    for (const std::string key : keys) {
        std::string variable = "HOTCACHE_" + key;
        std::transform(variable.begin(), variable.end(), variable.begin(),
                       [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
        const char * value = std::getenv(variable.c_str());
        if (value == nullptr || *value == '\0') { continue; }
        const std::string problem = apply_setting(settings, key, value);
        if (!problem.empty()) { problems += (problems.empty() ? "" : "\n") + problem; }
    }
    return problems;
}

}  // namespace hotcache
