// Everything that can be set, as text pairs: from the environment (HOTCACHE_SLOTS=16) and live (set("slots", "16")).
#pragma once

#include <cstdint>
#include <string>

#include "slot_table.h"

namespace hotcache {

struct Settings {
    std::string device;       // ggml device of the fast tier; empty: the first GPU there is
    std::string cold_device;  // ggml device that computes misses; empty: the CPU
    int slots = 0;            // a layer; 0 with no budget_bytes: the cache is off
    int64_t budget_bytes = 0; // used when slots is 0: as many slots as fit, the same for every layer
    PolicySettings policy;

    // True when switching from `other` needs new slots rather than other decisions.
    bool changes_slots(const Settings & other) const;
};

// Sets one value. Returns an empty string, or the sentence that says what is wrong and what would be right.
std::string apply_setting(Settings & settings, const std::string & key, const std::string & value);

// Reads every HOTCACHE_* variable of the environment. Returns the problems, a line each; a bad value keeps its default.
std::string apply_environment(Settings & settings);

}  // namespace hotcache
