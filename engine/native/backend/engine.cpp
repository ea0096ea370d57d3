#include "engine.h"

#include <algorithm>
#include <variant>

namespace hotcache {

namespace {

constexpr std::chrono::milliseconds tending_interval{250};
constexpr std::chrono::seconds settling_time{2};

// What somebody gave as a value, in a message: the beginning will do.
std::string quoted(const std::string & value) {
    constexpr size_t most = 200;
    return value.size() <= most ? value : value.substr(0, most) + "...";
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// A device by name, unless it is this library's own: a cache cannot delegate to itself.
ggml_backend_dev_t other_device(const std::string & name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
    return device == nullptr || std::string(ggml_backend_dev_name(device)) == own_device_name ? nullptr : device;
}

}  // namespace

Engine::Engine() {
    auto settings = std::make_shared<Settings>();
    const std::string problems = apply_environment(*settings);
    if (!problems.empty()) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: ignored: %s\n", problems.c_str());
    }
    std::string problem = load_profile(*settings, profile_);
    if (problem.empty()) { problem = check_workload(*settings, profile_.get()); }
    if (!problem.empty()) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "hotcache: ignored: %s\n", problem.c_str());
        profile_.reset();
    }
    adopt(settings);
}

// The routing profile that `settings` name, null when they name none. Returns an empty string or what is wrong with it.
std::string Engine::load_profile(const Settings & settings, std::shared_ptr<const RoutingProfile> & profile) {
    profile.reset();
    if (settings.profile.empty()) { return {}; }
    auto read = read_routing_profile(settings.profile);
    if (std::holds_alternative<std::string>(read)) { return "profile=" + quoted(settings.profile) + ": " + std::get<std::string>(read); }
    profile = std::make_shared<RoutingProfile>(std::get<RoutingProfile>(std::move(read)));
    return {};
}

// A workload may be named before the profile that has it.
std::string Engine::check_workload(const Settings & settings, const RoutingProfile * profile) {
    if (profile == nullptr) { return {}; }
    const auto counts = profile->counts_of(0, settings.workload);
    return std::holds_alternative<std::string>(counts) ? "workload=" + quoted(settings.workload) + ": " + std::get<std::string>(counts)
                                                       : std::string();
}

void Engine::adopt(std::shared_ptr<const Settings> settings) {
    wants_small_batches_ = settings->needed();
    wants_always_ = settings->repack || !settings->cold_device.empty();
    wants_prompts_ = settings->on() && settings->prefill != Prefill::scheduler;
    settings_ = std::move(settings);
}

bool Engine::wants(int64_t n_tokens, bool on_device_path, ggml_backend_buffer_t weights) const {
    // llama.cpp also builds graphs for no tokens at all, and gives them no memory here.
    if (n_tokens <= 0) { return false; }
    const bool small = n_tokens < prefill_tokens;
    // A cold device of its own and a packed copy are only reached through this backend.
    if (paused(weights)) { return small && wants_always_; }
    return small ? wants_small_batches_.load() : on_device_path && wants_prompts_.load();
}

void Engine::pause(const std::set<ggml_backend_buffer_t> & model) {
    const std::lock_guard<std::mutex> lock(pause_mutex_);
    for (ggml_backend_buffer_t weights : model) {
        Pause & pause = pauses_[weights];
        pause.until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(pause.next_s));
        pause.next_s = std::min(pause_growth * pause.next_s, longest_pause_s);
    }
}

void Engine::vindicated(const std::set<ggml_backend_buffer_t> & model) {
    const std::lock_guard<std::mutex> lock(pause_mutex_);
    for (ggml_backend_buffer_t weights : model) { pauses_.erase(weights); }
}

bool Engine::paused(ggml_backend_buffer_t weights) const {
    const std::lock_guard<std::mutex> lock(pause_mutex_);
    const auto pause = pauses_.find(weights);
    return pause != pauses_.end() && Clock::now() < pause->second.until;
}

void Engine::enter(Guest & guest) {
    const std::lock_guard<std::mutex> lock(mutex_);
    guests_.insert(&guest);
}

void Engine::leave(Guest & guest) {
    const std::lock_guard<std::mutex> lock(mutex_);
    guests_.erase(&guest);
}

void Engine::settle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Guest * guest : guests_) { guest->settle(); }
}

std::shared_ptr<const Settings> Engine::settings() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return settings_;
}

std::string Engine::set(const std::string & key, const std::string & value) {
    const std::lock_guard<std::mutex> turn(turnstile_);
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto changed = std::make_shared<Settings>(*settings_);
    std::string problem = apply_setting(*changed, key, value);
    if (problem.empty() && !changed->device.empty() && fast_device(*changed) == nullptr) {
        problem = "device=" + quoted(changed->device) + ": no such ggml device";
    }
    if (problem.empty() && !changed->cold_device.empty() && other_device(changed->cold_device) == nullptr) {
        problem = "cold_device=" + quoted(changed->cold_device) + ": no such ggml device";
    }
    std::shared_ptr<const RoutingProfile> profile = profile_;
    if (problem.empty() && key == "profile") { problem = load_profile(*changed, profile); }
    if (problem.empty() && (key == "profile" || key == "workload")) { problem = check_workload(*changed, profile.get()); }
    if (!problem.empty()) { return problem; }
    profile_ = std::move(profile);
    if (changed->changes_slots(*settings_)) {
        drop_layers(false);
        ceiling_bytes_ = unlimited;
    }
    // Whoever sets something wants to see what it does.
    {
        const std::lock_guard<std::mutex> pause_lock(pause_mutex_);
        pauses_.clear();
    }
    adopt(changed);
    return {};
}

void Engine::clear() {
    const std::lock_guard<std::mutex> turn(turnstile_);
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    drop_layers(false);
    ceiling_bytes_ = unlimited;
}

// Needs both locks: nobody computes, nobody looks a layer up.
void Engine::drop_layers(bool keep_heat) {
    for (Guest * guest : guests_) { guest->settle(); }
    promoter_.cancel();
    known_heat_.clear();
    for (auto & [key, layer] : layers_) {
        if (keep_heat) { known_heat_.emplace(key, layer->table); }
        layer->release();
    }
    layers_.clear();
    planned_slots_.clear();
    generation_.fetch_add(1, std::memory_order_release);
}

bool Engine::has_slots() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !layers_.empty();
}

int64_t Engine::slot_bytes() const {
    int64_t bytes = 0;
    for (const auto & [key, layer] : layers_) { bytes += layer->n_slots() * layer->expert_bytes(); }
    return bytes;
}

// Of all slots planned, those of layers that have not been computed yet too.
int64_t Engine::promised_bytes() const {
    int64_t bytes = slot_bytes();
    for (const Family & family : experts_.families()) {
        const auto planned = planned_slots_.find(family.weights.front());
        const bool taken = std::any_of(family.weights.begin(), family.weights.end(),
                                       [this](const ggml_tensor * w) { return layers_.count(w) > 0; });
        if (planned != planned_slots_.end() && !taken) { bytes += planned->second * family.expert_bytes; }
    }
    return bytes;
}

// Free memory of the fast tier beyond the reserve, which may be negative; unlimited where the device does not say.
int64_t Engine::spare_bytes(const Settings & settings) const {
    ggml_backend_dev_t device = fast_device(settings);
    if (device == nullptr) { return 0; }
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    if (total_bytes == 0) { return unlimited; }
    const bool is_cpu = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    const auto reserve_bytes = settings.reserve_bytes != Settings::automatic ? settings.reserve_bytes
                               : is_cpu                                      ? 0
                                                                             : static_cast<int64_t>(total_bytes / 128);
    return static_cast<int64_t>(free_bytes) - reserve_bytes;
}

void Engine::tend() {
    const auto now = Clock::now();
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (now - last_tended_ < tending_interval || layers_.empty()) { return; }
        last_tended_ = now;
    }
    const auto settings = this->settings();
    int64_t spare = spare_bytes(*settings);
    if (spare == unlimited) { return; }
    const int64_t asked = asked_bytes_.exchange(0);
    if (asked > 0) { spare = std::min(spare, int64_t{0}) - asked; }
    const std::lock_guard<std::mutex> turn(turnstile_);
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t held = slot_bytes();
    const bool short_of_memory = spare < 0 && held > 0;
    const bool room_again = ceiling_bytes_ != unlimited && spare > (wanted_bytes_ - held) / 4 && spare > held / 16 &&
                            now - last_resized_ > settling_time;
    if (!short_of_memory && !room_again) { return; }
    const int64_t allowed = std::max<int64_t>(held + spare, 0);
    ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: %s: %.1f MiB of slots become %.1f MiB\n",
                      short_of_memory ? "the fast tier runs short of memory" : "there is room for slots again", mib(held),
                      mib(std::min(allowed, wanted_bytes_)));
    drop_layers(true);
    ceiling_bytes_ = allowed >= wanted_bytes_ ? unlimited : allowed;
    last_resized_ = now;
}

void Engine::make_room(size_t bytes) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_tended_ = {};
    }
    ask_for(static_cast<int64_t>(bytes));
    tend();
    asked_bytes_ = 0;
}

// Shares out slots among the layers that have none yet: as many as asked for, as memory allows.
void Engine::plan_slots() {
    std::vector<Family> families = experts_.families();
    families.erase(std::remove_if(families.begin(), families.end(),
                                  [&](const Family & f) { return planned_slots_.count(f.weights.front()) > 0; }),
                   families.end());
    if (families.empty()) { return; }
    const Settings & settings = *settings_;
    std::vector<LayerDemand> demands;
    for (const Family & family : families) {
        demands.push_back({family.n_expert, family.expert_bytes, recorded_counts(family.layer)});
    }
    const int64_t promised = promised_bytes();
    const int64_t spare = spare_bytes(settings);
    const int64_t free_bytes = spare == unlimited ? unlimited : spare - (promised - slot_bytes());
    const int64_t room = std::max<int64_t>(std::min(free_bytes, ceiling_bytes_ - promised), 0);
    const auto bytes_of = [&](const std::vector<int> & slots) {
        int64_t bytes = 0;
        for (size_t i = 0; i < slots.size(); ++i) { bytes += slots[i] * demands[i].expert_bytes; }
        return bytes;
    };
    std::vector<int> slots;
    if (settings.slots > 0) {
        for (const LayerDemand & demand : demands) { slots.push_back(std::min(settings.slots, demand.n_experts)); }
    } else {
        slots = slots_within(std::max<int64_t>(settings.budget_bytes - promised, 0), demands, settings.spread,
                             settings.whole_layers);
    }
    wanted_bytes_ = promised + bytes_of(slots);
    if (bytes_of(slots) > room) {
        ggml_log_internal(GGML_LOG_LEVEL_WARN, "hotcache: the fast tier has room for %.1f of %.1f MiB of slots\n", mib(room),
                          mib(bytes_of(slots)));
        slots = slots_within(room, demands, settings.spread, settings.slots > 0 ? 0 : settings.whole_layers);
    }
    for (size_t i = 0; i < families.size(); ++i) {
        const int n = settings.slots > 0 ? std::min(slots[i], settings.slots) : slots[i];
        for (const ggml_tensor * w : families[i].weights) { planned_slots_[w] = n; }
    }
}

// Routing counts of the profile for this layer; none without a profile.
std::vector<double> Engine::recorded_counts(int layer) const {
    if (profile_ == nullptr) { return {}; }
    const auto counts = profile_->counts_of(layer, settings_->workload);
    return std::holds_alternative<std::string>(counts) ? std::vector<double>{} : std::get<std::vector<double>>(counts);
}

std::shared_ptr<Layer> Engine::layer_of(const RoutedFfn & ffn) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = layers_.find(ffn.key());
    if (known != layers_.end()) { return known->second; }
    if (settings_->on() && planned_slots_.count(ffn.key()) == 0) { plan_slots(); }
    ggml_backend_dev_t fast = fast_device(*settings_);
    const int n_slots = fast == nullptr ? 0 : planned_slots_[ffn.key()];
    auto layer = std::make_shared<Layer>(ffn, n_slots, fast == nullptr ? nullptr : ggml_backend_dev_buffer_type(fast));
    if (settings_->repack) { layer->repack(); }
    const auto heat = known_heat_.find(ffn.key());
    const std::vector<double> counts = recorded_counts(layer->index());
    if (heat != known_heat_.end()) {
        layer->table.inherit(heat->second);
    } else if (counts.size() == static_cast<size_t>(ffn.n_expert())) {
        layer->table.seed(counts);
    }
    layer->filling = heat != known_heat_.end() || !counts.empty() || layer->n_slots() == ffn.n_expert();
    layers_[ffn.key()] = layer;
    return layer;
}

std::vector<LayerReport> Engine::reports() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<LayerReport> reports;
    if (!settings_->on() && !settings_->repack) { return reports; }
    for (const auto & [key, layer] : layers_) {
        const std::lock_guard<std::mutex> layer_lock(layer->mutex);
        LayerCounters counters = layer->counters;
        counters.evictions = layer->table.evictions();
        reports.push_back({layer->index(), layer->n_slots(), layer->n_slots() * layer->expert_bytes(),
                           layer->repacked_bytes(), layer->pays && !paused(layer->key()->buffer), counters});
    }
    return reports;
}

std::vector<ExpertReport> Engine::experts_of(int index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<ExpertReport> experts;
    const auto found = std::find_if(layers_.begin(), layers_.end(),
                                    [index](const auto & known) { return known.second->index() == index; });
    if (found == layers_.end()) { return experts; }
    const std::lock_guard<std::mutex> layer_lock(found->second->mutex);
    const SlotTable & table = found->second->table;
    for (int e = 0; e < table.n_experts(); ++e) {
        experts.push_back({table.heat(e), table.slot_of(e) != SlotTable::none});
    }
    return experts;
}

void Engine::reset_counters() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto & [key, layer] : layers_) {
        const std::lock_guard<std::mutex> layer_lock(layer->mutex);
        layer->counters = LayerCounters{};
    }
}

void Engine::note_weight(ggml_backend_buffer_t buffer, const ggml_tensor * weight) {
    const std::lock_guard<std::mutex> lock(mutex_);
    experts_.add(buffer, weight);
    experts_.loaded();
}

bool Engine::holds_weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return settings_->holds_weights();
}

void Engine::note_question(const ggml_tensor * weight) {
    const std::lock_guard<std::mutex> lock(mutex_);
    experts_.would_hold(weight);
}

bool Engine::device_path_for_new_context() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    ggml_backend_dev_t fast = fast_device(*settings_);
    if (settings_->path == Path::host || fast == nullptr) { return false; }
    if (ggml_backend_buft_is_host(ggml_backend_dev_buffer_type(fast))) { return false; }
    return settings_->path == Path::device || experts_.dense_part_elsewhere();
}

void Engine::forget_buffer(ggml_backend_buffer_t buffer) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!experts_.knows(buffer)) { return; }
    }
    const std::lock_guard<std::mutex> turn(turnstile_);
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Guest * guest : guests_) { guest->settle(); }
    promoter_.drain();
    {
        const std::lock_guard<std::mutex> pause_lock(pause_mutex_);
        pauses_.erase(buffer);
    }
    for (const ggml_tensor * weight : experts_.remove(buffer)) {
        for (auto it = layers_.begin(); it != layers_.end();) {
            const auto & weights = it->second->weights();
            const bool gone = std::find(weights.begin(), weights.end(), weight) != weights.end();
            if (gone) { it->second->release(); }
            it = gone ? layers_.erase(it) : std::next(it);
        }
        known_heat_.erase(weight);
        planned_slots_.erase(weight);
    }
    generation_.fetch_add(1, std::memory_order_release);
}

ggml_backend_dev_t Engine::fast_device(const Settings & settings) {
    return settings.device.empty() ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU)
                                   : other_device(settings.device);
}

ggml_backend_dev_t Engine::cold_device(const Settings & settings) {
    ggml_backend_dev_t device = settings.cold_device.empty() ? nullptr : other_device(settings.cold_device);
    return device != nullptr ? device : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

}  // namespace hotcache
