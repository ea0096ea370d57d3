// How ggml finds the devices, and the library's own C interface.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "accelerator.h"
#include "cpu_backend.h"
#include "emulator.h"
#include "machine.h"
#include "settings.h"
#include "slow_host.h"

namespace emu {

namespace {

// Throws std::runtime_error or std::invalid_argument with the sentence to show.
Settings checked_settings() {
    const std::string mismatch = ggml_abi::mismatch("emulated accelerator");
    if (!mismatch.empty()) { throw std::runtime_error(mismatch); }
    if (cpu_device() == nullptr) { throw std::runtime_error("emulated accelerator: ggml has no CPU backend loaded"); }
    try {
        return settings_from_environment();
    } catch (const std::invalid_argument & error) {
        throw std::invalid_argument(std::string("emulated accelerator: ") + error.what());
    }
}

ggml_backend_reg make_reg(void * context);

// An accelerator, and the machine as it knows it.
struct Card {
    Card(int index, const Settings & settings, ggml_backend_reg_t reg)
        : machine(settings), accelerator(index, machine, reg) {}

    Machine machine;
    Accelerator accelerator;
};

// A deque leaves its cards where they are, which ggml points at.
std::deque<Card> make_cards(const Settings & settings, ggml_backend_reg_t reg) {
    std::deque<Card> cards;
    for (int i = 0; i < settings.devices; ++i) { cards.emplace_back(i, settings, reg); }
    return cards;
}

struct Registered {
    explicit Registered(const Settings & settings) : cards(make_cards(settings, &reg)) {}

    ggml_backend_reg reg = make_reg(this);
    std::deque<Card> cards;
    SlowHost slow_host{cards.front().machine, &reg};
};

const char * reg_name(ggml_backend_reg_t) { return "EMU"; }

Registered & registered_of(ggml_backend_reg_t reg) { return *static_cast<Registered *>(reg->context); }

size_t device_count(ggml_backend_reg_t reg) { return registered_of(reg).cards.size() + 1; }

ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index) {
    Registered & registered = registered_of(reg);
    return index < registered.cards.size() ? registered.cards[index].accelerator.device() : registered.slow_host.device();
}

void * get_proc_address(ggml_backend_reg_t, const char * name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(static_cast<ggml_backend_set_n_threads_t>(set_slow_host_threads));
    }
    return nullptr;
}

ggml_backend_reg make_reg(void * context) {
    return {ggml_abi::api_version, {reg_name, device_count, get_device, get_proc_address}, context};
}

// The one owner of all state. ggml never unregisters, and a stream may outlive the statics of a program that exits in
// the middle of its work, so what is registered is never destroyed.
class Registration {
public:
    // Registers on the first call that finds everything in order; throws what checked_settings() throws.
    Registered & obtain() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (registered_ == nullptr) { registered_ = new Registered(checked_settings()); }
        return *registered_;
    }

    // Null before registration.
    Registered * find() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return registered_;
    }

private:
    std::mutex mutex_;
    Registered * registered_ = nullptr;
};

// Counters are nothing but numbers of one kind.
void add(emu_counter_values & sum, const emu_counter_values & more) {
    constexpr size_t count = sizeof(emu_counter_values) / sizeof(uint64_t);
    uint64_t values[count];
    uint64_t added[count];
    std::memcpy(values, &sum, sizeof(values));
    std::memcpy(added, &more, sizeof(added));
    for (size_t i = 0; i < count; ++i) { values[i] += added[i]; }
    std::memcpy(&sum, values, sizeof(values));
}

Registration & registration() {
    static Registration * const the_one = new Registration;
    return *the_one;
}

}  // namespace

}  // namespace emu

extern "C" {

EMU_EXPORT int ggml_backend_score() {
    try {
        emu::checked_settings();
        return 1;
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 0;
    }
}

EMU_EXPORT ggml_backend_reg_t ggml_backend_init() {
    try {
        return &emu::registration().obtain().reg;
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return nullptr;
    }
}

int emu_set(const char * key, const char * value) {
    emu::Registered * registered = emu::registration().find();
    if (registered == nullptr) { return EMU_NOT_REGISTERED; }
    const auto dial = emu::dial_named(key);
    if (!dial) { return EMU_UNKNOWN_KEY; }
    try {
        for (auto & card : registered->cards) { card.machine.set_dial(*dial, emu::parse_dial(*dial, value)); }
    } catch (const std::exception &) { return EMU_BAD_VALUE; }
    return EMU_OK;
}

int emu_counters(struct emu_counter_values * out, size_t size_bytes) {
    emu::Registered * registered = emu::registration().find();
    if (registered == nullptr) { return EMU_NOT_REGISTERED; }
    emu_counter_values values{};
    for (const auto & card : registered->cards) { emu::add(values, card.machine.counters()); }
    std::memcpy(out, &values, std::min(size_bytes, sizeof(values)));
    return EMU_OK;
}

}  // extern "C"
