// One model and one context in this process, placed as stock llama.cpp's own flags would place them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "llama.h"

namespace gpu {

// How llama.cpp holds what stays in RAM. Names follow its flags.
enum class Layout {
    mmap,    // its default: the file, mapped
    host,    // --load-mode none: memory the device can read directly, where it offers such memory
    repack,  // --load-mode none --no-host: the CPU's own packed layouts, where it has one for the type
    plain,   // --load-mode none --no-host --no-repack: ggml's own layout, which the plugin keeps
};

struct Placement {
    std::string model;
    std::string device;                  // ggml's name, such as CUDA0; CPU keeps all of the model there
    std::vector<std::string> libraries;  // ggml backends to load first
    std::string plugin;                  // the hot-expert cache, loaded last; empty leaves it out
    int cpu_moe = 0;                     // routed experts of the first so many layers stay in RAM, as -ncmoe does
    Layout layout = Layout::host;
    int threads = 1;
    int n_ctx = 0;
    int n_batch = 512;
};

// Takes the arguments that all programs have in common; n_ctx is the caller's.
Placement placement_from(Arguments & arguments);

// What the GGUF file says about its routed experts.
struct ModelFacts {
    int layers = 0;
    int experts = 0;
    int used = 0;
    int expert_layers = 0;            // that have routed experts
    int64_t expert_bytes = 0;         // of all layers
    int64_t expert_layer_bytes = 0;   // of the largest
    int topics = 1;
};

// Throws std::runtime_error when `path` is no model.
ModelFacts read_facts(const std::string & path);

class Session {
  public:
    // Loads the backends, then the model. Throws std::runtime_error with the reason.
    Session(const Placement & placement, ggml_backend_sched_eval_callback callback, void * callback_data);

    // Appends `n` tokens and waits for the result.
    void decode(const int32_t * tokens, int n);
    const float * logits();  // [vocab] of the last token
    void forget();           // empties the KV cache
    int n_vocab() const;

    size_t device_used_bytes() const;  // by whomever
    size_t device_total_bytes() const;
    size_t used_before_bytes() const { return used_before_bytes_; }
    std::string device_description() const;

  private:
    struct Deleter {
        void operator()(llama_model * model) const { llama_model_free(model); }
        void operator()(llama_context * context) const { llama_free(context); }
    };

    ggml_backend_dev_t device_ = nullptr;
    size_t used_before_bytes_ = 0;
    std::unique_ptr<llama_model, Deleter> model_;
    std::unique_ptr<llama_context, Deleter> context_;
};

}  // namespace gpu
