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
    bool whole;
};

// In the order of enum Dial. Unset is unthrottled, except for the latency, which only counts on a throttled link.
constexpr std::array<Variable, dial_count> dial_variables = {{
    {"EMU_LINK_GBPS", 0, 0, 1e5, false},
    {"EMU_LINK_LATENCY_US", 8, 0, 1e6, false},
    {"EMU_DEVICE_GBPS", 0, 0, 1e5, false},
    {"EMU_LAUNCH_US", 0, 0, 1e6, false},
    {"EMU_HOST_GBPS", 0, 0, 1e5, false},
    {"EMU_VRAM_STOLEN_MIB", 0, 0, 1 << 20, true},
    {"EMU_REFUSE_ALLOC_EVERY", 0, 0, 1e9, true},
    {"EMU_FAIL_GRAPH_EVERY", 0, 0, 1e9, true},
    {"EMU_LOST_AFTER_GRAPHS", 0, 0, 1e9, true},
}};

constexpr Variable vram_mib = {"EMU_VRAM_MIB", 256, 1, 1 << 20, true};
constexpr Variable devices = {"EMU_DEVICES", 1, 1, 16, true};
constexpr Variable threads = {"EMU_THREADS", 1, 1, 512, true};
// ggml's own variable and default, which CUDA reads too.
constexpr Variable offload_batch = {"GGML_OP_OFFLOAD_MIN_BATCH", 32, 0, 1 << 30, true};

double parse(const Variable & variable, const std::string & text) {
    char * end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool is_number = !text.empty() && *end == '\0' && std::isfinite(value);
    if (is_number && value >= variable.least && value <= variable.most && (!variable.whole || value == std::floor(value))) {
        return value;
    }
    std::ostringstream message;
    message << variable.name << "='" << text << "' is not " << (variable.whole ? "a whole number" : "a number") << " from "
            << variable.least << " to " << variable.most << "; correct it or unset it";
    throw std::invalid_argument(message.str());
}

double read(const Variable & variable) {
    const char * text = std::getenv(variable.name);
    return text == nullptr ? variable.fallback : parse(variable, text);
}

}  // namespace

Settings settings_from_environment() {
    Settings settings{};
    settings.devices = static_cast<int>(read(devices));
    settings.vram_bytes = static_cast<size_t>(read(vram_mib)) << 20;
    settings.threads = static_cast<int>(read(threads));
    settings.offload_batch_tokens = static_cast<int>(read(offload_batch));
    for (size_t i = 0; i < dial_count; ++i) { settings.dials[i] = read(dial_variables[i]); }
    return settings;
}

std::optional<Dial> dial_named(std::string_view variable) {
    for (size_t i = 0; i < dial_count; ++i) {
        if (variable == dial_variables[i].name) { return static_cast<Dial>(i); }
    }
    return std::nullopt;
}

double parse_dial(Dial dial, const std::string & text) {
    return parse(dial_variables[static_cast<size_t>(dial)], text);
}

}  // namespace emu
