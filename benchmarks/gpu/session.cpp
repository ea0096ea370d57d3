#include "session.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <thread>

#include "gguf.h"
#include "shape.h"

namespace gpu {

namespace {

// Where llama.cpp's own -ncmoe finds the routed experts of the first `layers` layers, as one pattern.
std::string experts_of_first(int layers) {
    std::string numbers;
    for (int layer = 0; layer < layers; ++layer) { numbers += (layer == 0 ? "" : "|") + std::to_string(layer); }
    return "blk\\.(" + numbers + ")\\.ffn_(up|down|gate|gate_up)_(ch|)exps";
}

void load_backend(const std::string & path) {
    if (ggml_backend_load(path.c_str()) == nullptr) { throw std::runtime_error("ggml could not load " + path); }
}

}  // namespace

Placement placement_from(Arguments & arguments) {
    const std::map<std::string, Layout> layouts = {
        {"mmap", Layout::mmap}, {"host", Layout::host}, {"repack", Layout::repack}, {"plain", Layout::plain}};
    Placement placement;
    placement.model = arguments.required("model");
    placement.device = arguments.required("device");
    placement.libraries = arguments.every("load");
    placement.plugin = arguments.text("plugin");
    placement.cpu_moe = arguments.whole("cpu-moe", 0, 0, 1000);
    const std::string layout = arguments.text("layout", "host");
    if (layouts.count(layout) == 0) {
        throw std::invalid_argument("--layout " + layout + ": must be mmap, host, repack or plain");
    }
    placement.layout = layouts.at(layout);
    const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    placement.threads = arguments.whole("threads", processors, 1, 1024);
    return placement;
}

ModelFacts read_facts(const std::string & path) {
    struct Deleter {
        void operator()(gguf_context * context) const { gguf_free(context); }
    };
    const std::unique_ptr<gguf_context, Deleter> gguf(gguf_init_from_file(path.c_str(), {true, nullptr}));
    if (gguf == nullptr) { throw std::runtime_error(path + ": not a GGUF file"); }
    const auto number = [&](const std::string & key, int fallback) {
        const int64_t id = gguf_find_key(gguf.get(), key.c_str());
        const bool is_number = id >= 0 && gguf_get_kv_type(gguf.get(), id) == GGUF_TYPE_UINT32;
        return is_number ? static_cast<int>(gguf_get_val_u32(gguf.get(), id)) : fallback;
    };
    const int64_t architecture = gguf_find_key(gguf.get(), "general.architecture");
    if (architecture < 0 || gguf_get_kv_type(gguf.get(), architecture) != GGUF_TYPE_STRING) {
        throw std::runtime_error(path + ": no architecture in its metadata");
    }
    const std::string prefix = std::string(gguf_get_val_str(gguf.get(), architecture)) + ".";
    ModelFacts facts;
    facts.layers = number(prefix + "block_count", 0);
    facts.experts = number(prefix + "expert_count", 0);
    facts.used = number(prefix + "expert_used_count", 0);
    facts.topics = std::max(1, number(topics_key, 1));
    std::map<int, int64_t> layer_bytes;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        int layer = 0;
        const char * name = gguf_get_tensor_name(gguf.get(), i);
        if (std::strstr(name, "_exps.") == nullptr || std::sscanf(name, "blk.%d.", &layer) != 1) { continue; }
        layer_bytes[layer] += static_cast<int64_t>(gguf_get_tensor_size(gguf.get(), i));
    }
    facts.expert_layers = static_cast<int>(layer_bytes.size());
    for (const auto & [layer, bytes] : layer_bytes) {
        facts.expert_bytes += bytes;
        facts.expert_layer_bytes = std::max(facts.expert_layer_bytes, bytes);
    }
    if (facts.expert_layers == 0 || facts.experts == 0) { throw std::runtime_error(path + ": has no routed experts"); }
    return facts;
}

Session::Session(const Placement & placement, ggml_backend_sched_eval_callback callback, void * callback_data) {
    for (const std::string & library : placement.libraries) { load_backend(library); }
    if (!placement.plugin.empty()) { load_backend(placement.plugin); }
    llama_backend_init();
    device_ = ggml_backend_dev_by_name(placement.device.c_str());
    if (device_ == nullptr) {
        std::string names;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            names += std::string(" ") + ggml_backend_dev_name(ggml_backend_dev_get(i));
        }
        throw std::runtime_error("no ggml device " + placement.device + "; there are" + names);
    }
    used_before_bytes_ = device_used_bytes();

    const bool on_device = ggml_backend_dev_type(device_) != GGML_BACKEND_DEVICE_TYPE_CPU;
    ggml_backend_dev_t devices[] = {on_device ? device_ : nullptr, nullptr};
    const std::string in_ram = experts_of_first(placement.cpu_moe);
    std::vector<llama_model_tensor_buft_override> overrides;
    if (placement.cpu_moe > 0) { overrides.push_back({in_ram.c_str(), ggml_backend_cpu_buffer_type()}); }
    overrides.push_back({nullptr, nullptr});

    llama_model_params model = llama_model_default_params();
    model.devices = devices;
    model.n_gpu_layers = on_device ? 999 : 0;
    model.load_mode = placement.layout == Layout::mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    model.no_host = placement.layout == Layout::repack || placement.layout == Layout::plain;
    model.use_extra_bufts = placement.layout != Layout::plain;
    model.tensor_buft_overrides = overrides.data();
    model_.reset(llama_model_load_from_file(placement.model.c_str(), model));
    if (model_ == nullptr) { throw std::runtime_error("llama.cpp could not load " + placement.model); }

    llama_context_params context = llama_context_default_params();
    context.n_ctx = static_cast<uint32_t>(placement.n_ctx);
    context.n_batch = static_cast<uint32_t>(placement.n_batch);
    context.n_ubatch = static_cast<uint32_t>(placement.n_batch);
    context.n_threads = placement.threads;
    context.n_threads_batch = placement.threads;
    context.cb_eval = callback;
    context.cb_eval_user_data = callback_data;
    context_.reset(llama_init_from_model(model_.get(), context));
    if (context_ == nullptr) { throw std::runtime_error("llama.cpp could not make a context"); }
}

void Session::decode(const int32_t * tokens, int n) {
    // llama.cpp's batch is not const, but it does not write to the tokens.
    const int status = llama_decode(context_.get(), llama_batch_get_one(const_cast<int32_t *>(tokens), n));
    if (status != 0) { throw std::runtime_error("llama_decode returned " + std::to_string(status)); }
    llama_synchronize(context_.get());
}

const float * Session::logits() { return llama_get_logits_ith(context_.get(), -1); }

void Session::forget() { llama_memory_clear(llama_get_memory(context_.get()), true); }

int Session::n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(model_.get())); }

size_t Session::device_used_bytes() const {
    size_t free_bytes = 0, total_bytes = 0;
    ggml_backend_dev_memory(device_, &free_bytes, &total_bytes);
    return total_bytes - free_bytes;
}

size_t Session::device_total_bytes() const {
    size_t free_bytes = 0, total_bytes = 0;
    ggml_backend_dev_memory(device_, &free_bytes, &total_bytes);
    return total_bytes;
}

std::string Session::device_description() const { return ggml_backend_dev_description(device_); }

}  // namespace gpu
