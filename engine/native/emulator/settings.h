// What the emulated machine is told to be: the EMU_* variables, read once when the library registers.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace emu {

// What can be changed while the machine runs: how fast it is, and what goes wrong with it.
enum class Dial : size_t {
    link_gbps,
    link_latency_us,
    device_gbps,
    launch_us,
    host_gbps,
    vram_stolen_mib,     // of the device's memory, taken by another program
    refuse_alloc_every,  // each so-many-th allocation in the device's memory is refused; 0: none
    fail_graph_every,    // each so-many-th graph fails without being computed; 0: none
    lost_after_graphs,   // with the graph after so many the device is gone for good; 0: never
};

constexpr size_t dial_count = 9;

struct Settings {
    int devices;               // accelerators, each with memory and a link of its own
    size_t vram_bytes;         // of each
    int threads;               // of the accelerator's arithmetic, not of the slow host's
    int offload_batch_tokens;  // from here on llama.cpp streams host weights to the accelerator
    std::array<double, dial_count> dials;  // 0 lifts a throttle and injects no fault
};

// Throws std::invalid_argument whose text names the variable, what it held and what it takes.
Settings settings_from_environment();

std::optional<Dial> dial_named(std::string_view variable);

// Throws as settings_from_environment does.
double parse_dial(Dial dial, const std::string & text);

}  // namespace emu
