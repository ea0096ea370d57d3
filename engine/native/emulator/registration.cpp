// How ggml finds the two devices, and the library's own C interface.
#include <algorithm>
#include <cstdio>
#include <cstring>
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

struct Registered {
    explicit Registered(const Settings & settings) : machine(settings) {}

    Machine machine;
    ggml_backend_reg reg = make_reg(this);
    Accelerator accelerator{machine, &reg};
    SlowHost slow_host{machine, &reg};
};

const char * reg_name(ggml_backend_reg_t) { return "EMU"; }

size_t device_count(ggml_backend_reg_t) { return 2; }

ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index) {
    auto & registered = *static_cast<Registered *>(reg->context);
    return index == 0 ? registered.accelerator.device() : registered.slow_host.device();
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
        registered->machine.set_dial(*dial, emu::parse_dial(*dial, value));
    } catch (const std::exception &) { return EMU_BAD_VALUE; }
    return EMU_OK;
}

int emu_counters(struct emu_counter_values * out, size_t size_bytes) {
    emu::Registered * registered = emu::registration().find();
    if (registered == nullptr) { return EMU_NOT_REGISTERED; }
    const emu_counter_values values = registered->machine.counters();
    std::memcpy(out, &values, std::min(size_bytes, sizeof(values)));
    return EMU_OK;
}

}  // extern "C"
