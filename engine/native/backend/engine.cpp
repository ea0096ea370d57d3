#include "engine.h"

#include <cstring>

namespace hotcache {

namespace {

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
    adopt(settings);
}

void Engine::adopt(std::shared_ptr<const Settings> settings) {
    const bool on = settings->slots > 0 || settings->budget_bytes > 0;
    // A cold device of its own is only reached through this backend, slots or not.
    wants_small_batches_.store(on || !settings->cold_device.empty(), std::memory_order_relaxed);
    settings_ = std::move(settings);
}

std::shared_ptr<const Settings> Engine::settings() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return settings_;
}

std::string Engine::set(const std::string & key, const std::string & value) {
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto changed = std::make_shared<Settings>(*settings_);
    std::string problem = apply_setting(*changed, key, value);
    if (problem.empty() && !changed->device.empty() && fast_device(*changed) == nullptr) {
        problem = "device=" + changed->device + ": no such ggml device";
    }
    if (problem.empty() && !changed->cold_device.empty() && other_device(changed->cold_device) == nullptr) {
        problem = "cold_device=" + changed->cold_device + ": no such ggml device";
    }
    if (!problem.empty()) { return problem; }
    if (changed->changes_slots(*settings_)) { drop_layers(); }
    adopt(changed);
    return {};
}

void Engine::clear() {
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    drop_layers();
}

// Needs both locks: nobody computes, nobody looks a layer up.
void Engine::drop_layers() {
    promoter_.drain();
    for (auto & [key, layer] : layers_) { layer->release(); }
    layers_.clear();
    generation_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<Layer> Engine::layer_of(const RoutedFfn & ffn) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = layers_.find(ffn.key());
    if (known != layers_.end()) { return known->second->n_slots() > 0 ? known->second : nullptr; }
    const int n_slots = slots_for(ffn, *settings_);
    ggml_backend_dev_t fast = fast_device(*settings_);
    if (n_slots == 0 || fast == nullptr) { return nullptr; }
    auto layer = std::make_shared<Layer>(ffn, n_slots, ggml_backend_dev_buffer_type(fast));
    layers_[ffn.key()] = layer;
    return layer->n_slots() > 0 ? layer : nullptr;
}

int Engine::slots_for(const RoutedFfn & ffn, const Settings & settings) const {
    if (settings.slots > 0) { return settings.slots; }
    int64_t every_layer_bytes = 0;
    for (const auto & [buffer, weights] : expert_bytes_) {
        for (const auto & [weight, bytes] : weights) { every_layer_bytes += bytes; }
    }
    return slots_within(settings.budget_bytes, every_layer_bytes, ffn.n_expert());
}

std::vector<LayerReport> Engine::reports() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<LayerReport> reports;
    for (const auto & [key, layer] : layers_) {
        const std::lock_guard<std::mutex> layer_lock(layer->mutex);
        LayerCounters counters = layer->counters;
        counters.evictions = layer->table.evictions();
        reports.push_back({layer->index(), layer->n_slots(), layer->n_slots() * layer->expert_bytes(), counters});
    }
    return reports;
}

void Engine::reset_counters() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto & [key, layer] : layers_) {
        const std::lock_guard<std::mutex> layer_lock(layer->mutex);
        layer->counters = LayerCounters{};
    }
}

void Engine::note_weight(ggml_backend_buffer_t buffer, const ggml_tensor * weight) {
    // Compute buffers see every intermediate pass by; GGUF names expert tensors "…exps.weight" and "…exps.bias".
    if (weight->op != GGML_OP_NONE || std::strstr(ggml_get_name(weight), "exps.") == nullptr) { return; }
    const std::lock_guard<std::mutex> lock(mutex_);
    expert_bytes_[buffer][weight] = static_cast<int64_t>(expert_slice_bytes(weight));
}

void Engine::forget_buffer(ggml_backend_buffer_t buffer) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (expert_bytes_.find(buffer) == expert_bytes_.end()) { return; }
    }
    const std::unique_lock<std::shared_mutex> alone(in_use_);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto & weights = expert_bytes_[buffer];
    promoter_.drain();
    for (auto it = layers_.begin(); it != layers_.end();) {
        bool gone = false;
        for (const ggml_tensor * w : it->second->weights()) { gone = gone || weights.count(w) > 0; }
        if (gone) { it->second->release(); }
        it = gone ? layers_.erase(it) : std::next(it);
    }
    expert_bytes_.erase(buffer);
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
