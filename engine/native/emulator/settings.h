// What the emulated machine is told to be: the EMU_* variables, read once when the library registers.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace emu {

enum class Throttle : size_t { link_gbps, link_latency_us, device_gbps, launch_us, host_gbps };

constexpr size_t throttle_count = 5;

struct Settings {
    size_t vram_bytes;
    int threads;               // of the accelerator's arithmetic, not of the slow host's
    int offload_batch_tokens;  // from here on llama.cpp streams host weights to the accelerator
    std::array<double, throttle_count> throttles;  // 0 lifts a throttle
};

// Throws std::invalid_argument whose text names the variable, what it held and what it takes.
Settings settings_from_environment();

std::optional<Throttle> throttle_named(std::string_view variable);

// Throws as settings_from_environment does.
double parse_throttle(Throttle throttle, const std::string & text);

}  // namespace emu
