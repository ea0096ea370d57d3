#include "settings.h"

#include <cmath>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace emu {

namespace {

struct Variable {
    const char * name;
    double fallback;
    double least;
    double most;
};

// In the order of enum Throttle. Unset is unthrottled, except for the latency, which only counts on a throttled link.
constexpr std::array<Variable, throttle_count> throttle_variables = {{
    {"EMU_LINK_GBPS", 0, 0, 1e5},
    {"EMU_LINK_LATENCY_US", 8, 0, 1e6},
    {"EMU_DEVICE_GBPS", 0, 0, 1e5},
    {"EMU_LAUNCH_US", 0, 0, 1e6},
    {"EMU_HOST_GBPS", 0, 0, 1e5},
}};

constexpr Variable vram_mib = {"EMU_VRAM_MIB", 256, 1, 1 << 20};
constexpr Variable threads = {"EMU_THREADS", 1, 1, 512};
// ggml's own variable and default, which CUDA reads too.
constexpr Variable offload_batch = {"GGML_OP_OFFLOAD_MIN_BATCH", 32, 0, 1 << 30};

double parse(const Variable & variable, const std::string & text, bool whole) {
    char * end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool is_number = !text.empty() && *end == '\0' && std::isfinite(value);
    if (is_number && value >= variable.least && value <= variable.most && (!whole || value == std::floor(value))) {
        return value;
    }
    std::ostringstream message;
    message << variable.name << "='" << text << "' is not " << (whole ? "a whole number" : "a number") << " from "
            << variable.least << " to " << variable.most << "; correct it or unset it";
    throw std::invalid_argument(message.str());
}

double read(const Variable & variable, bool whole) {
    const char * text = std::getenv(variable.name);
    return text == nullptr ? variable.fallback : parse(variable, text, whole);
}

}  // namespace

Settings settings_from_environment() {
    Settings settings{};
    settings.vram_bytes = static_cast<size_t>(read(vram_mib, true)) << 20;
    settings.threads = static_cast<int>(read(threads, true));
    settings.offload_batch_tokens = static_cast<int>(read(offload_batch, true));
    for (size_t i = 0; i < throttle_count; ++i) { settings.throttles[i] = read(throttle_variables[i], false); }
    return settings;
}

std::optional<Throttle> throttle_named(std::string_view variable) {
    for (size_t i = 0; i < throttle_count; ++i) {
        if (variable == throttle_variables[i].name) { return static_cast<Throttle>(i); }
    }
    return std::nullopt;
}

double parse_throttle(Throttle throttle, const std::string & text) {
    return parse(throttle_variables[static_cast<size_t>(throttle)], text, false);
}

}  // namespace emu
