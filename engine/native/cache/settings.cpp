#include "settings.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace hotcache {

namespace {

constexpr std::array keys = {"device",     "cold_device", "slots",         "bytes",        "interval", "hysteresis",
                             "promotions", "policy",      "min_sightings", "dwell",        "half_life"};

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

}  // namespace

bool Settings::changes_slots(const Settings & other) const {
    return device != other.device || cold_device != other.cold_device || slots != other.slots ||
           budget_bytes != other.budget_bytes;
}

std::string apply_setting(Settings & settings, const std::string & key, const std::string & value) {
    PolicySettings & policy = settings.policy;
    if (key == "device") {
        settings.device = value;
    } else if (key == "cold_device") {
        settings.cold_device = value;
    } else if (key == "slots") {
        return parse_number(key, value, 0, 65536, settings.slots);
    } else if (key == "bytes") {
        return parse_number(key, value, 0, 1e15, settings.budget_bytes);
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
    } else if (key == "policy") {
        if (value == "heat") {
            policy.ranking = Ranking::heat;
        } else if (value == "lru") {
            policy.ranking = Ranking::lru;
        } else if (value == "static") {
            policy.ranking = Ranking::fixed;
        } else {
            return "policy=" + value + ": must be heat, lru or static";
        }
    } else {
        std::string known;
        for (const char * k : keys) { known += known.empty() ? k : std::string(", ") + k; }
        return key + ": no such setting; there are " + known;
    }
    return {};
}

std::string apply_environment(Settings & settings) {
    std::string problems;
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
