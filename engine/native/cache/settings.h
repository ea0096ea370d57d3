// Everything that can be set, as text pairs: from a file (slots = 16), from the environment (HOTCACHE_SLOTS=16) and live
// (set("slots", "16")).
#pragma once

#include <cstdint>
#include <string>

#include "budget.h"
#include "slot_table.h"

namespace hotcache {

// Where a split's tensors lie: in host memory, or in the fast tier's own.
enum class Path { automatic, host, device };

// Who computes batches of prompt processing: llama.cpp's scheduler as if there were no cache, the cold device, the fast
// device with experts streamed to it, or whichever of these last two was measured to be faster for the batch size.
enum class Prefill { scheduler, cold, stream, automatic };

enum class Choice { automatic, no, yes };

struct Settings {
    std::string device;       // ggml device of the fast tier; empty: the first GPU there is
    std::string cold_device;  // ggml device that computes misses; empty: the CPU
    int slots = 0;            // a layer; 0 with no budget_bytes: the cache is off
    int64_t budget_bytes = 0; // used when slots is 0: as many slots as fit
    Spread spread = Spread::flat;
    int whole_layers = 0;     // of the budget first, all experts of the last so many layers
    std::string profile;      // recorded routing that seeds the slots and drives the spread; empty: none
    std::string workload;     // which of the profile's workloads; empty: all of them together
    int64_t reserve_bytes = automatic;     // of the fast tier, left free; automatic: 1/128 of it
    int64_t in_flight_bytes = 64 << 20;    // most bytes of promotions that wait for the link
    Path path = Path::automatic;
    Prefill prefill = Prefill::automatic;
    bool prefill_heat = false;             // whether prompts count as sightings
    int64_t staging_bytes = automatic;     // of each of the two buffers experts are streamed through
    bool repack = false;                   // misses are computed from a copy in the CPU's own packed layout
    // Expert weights are loaded into the plugin's memory, where they can be given slots but not have the CPU's own
    // layouts; automatic: when the settings at that time have a use for it.
    Choice hold = Choice::automatic;
    // On the device path a token's pairs are computed before the host knows them; automatic: where most of them hit.
    Choice ahead = Choice::automatic;
    bool guard = true;                     // measure whether the cache pays, and switch it off where it does not
    PolicySettings policy;

    static constexpr int64_t automatic = -1;
    bool on() const { return slots > 0 || budget_bytes > 0; }
    // Whether small batches have to come to this backend, slots or not.
    bool needed() const { return on() || repack || !cold_device.empty(); }
    bool holds_weights() const { return hold == Choice::automatic ? needed() : hold == Choice::yes; }

    // True when switching from `other` needs new slots rather than other decisions.
    bool changes_slots(const Settings & other) const;
};

// Sets one value. Returns an empty string, or the sentence that says what is wrong and what would be right.
std::string apply_setting(Settings & settings, const std::string & key, const std::string & value);

// Applies "key=value" lines in their order up to the first problem, which is returned; empty lines are skipped.
std::string apply_settings(Settings & settings, const std::string & lines);

// Reads the file that HOTCACHE_CONFIG names, then every other HOTCACHE_* variable, which win over the file. Returns the
// problems, a line each; what is wrong keeps its value.
std::string apply_environment(Settings & settings);

}  // namespace hotcache
