#include "model_plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>

#include "popularity.h"
#include "random.h"
#include "weights.h"

namespace gpu {

namespace {

// What all layers together add to a stream of variance 1, whatever their number. Routed experts speak louder than
// attention, so that a wrong expert is visible in the logits.
constexpr double attention_variance = 0.36;
constexpr double routed_variance = 1.96;
constexpr double logit_gain = 1.0;
// Found by counting what 12 and 48 layers of 128 experts route: with it the skew is about the same in every layer.
constexpr double thinning = 0.45;

using Vectors = std::vector<std::vector<float>>;

double dot(const std::vector<float> & a, const std::vector<float> & b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) { sum += static_cast<double>(a[i]) * b[i]; }
    return sum;
}

void add(std::vector<float> & to, double factor, const std::vector<float> & what) {
    for (size_t i = 0; i < to.size(); ++i) { to[i] += static_cast<float>(factor) * what[i]; }
}

// `count` random directions at right angles to each other.
Vectors directions(int count, int embd, Random random) {
    Vectors basis;
    while (basis.size() < static_cast<size_t>(count)) {
        std::vector<float> v(static_cast<size_t>(embd));
        for (float & x : v) { x = random.normal(); }
        for (const auto & b : basis) { add(v, -dot(v, b), b); }
        const double length = std::sqrt(dot(v, v));
        for (float & x : v) { x = static_cast<float>(x / length); }
        basis.push_back(std::move(v));
    }
    return basis;
}

ggml_type storage(const std::string & name) {
    static const std::map<std::string, ggml_type> types = {
        {"q4_0", GGML_TYPE_Q4_0}, {"q4_K", GGML_TYPE_Q4_K}, {"q8_0", GGML_TYPE_Q8_0}};
    const auto found = types.find(name);
    if (found == types.end()) { throw std::invalid_argument("--quant " + name + ": must be q4_0, q4_K or q8_0"); }
    return found->second;
}

class Planner {
  public:
    explicit Planner(const Shape & shape) : shape_(shape), quant_(storage(shape.quant)) {
        const int64_t block = ggml_blck_size(quant_);
        require(shape.embd % block == 0, "--embd must be a multiple of " + std::to_string(block));
        require(shape.ff % block == 0, "--ff must be a multiple of " + std::to_string(block));
        require(shape.embd % 32 == 0, "--embd must be a multiple of 32");
        require(shape.heads % shape.kv_heads == 0, "--heads must be a multiple of --kv-heads");
        require(shape.head_dim % 32 == 0, "--head-dim must be a multiple of 32");
        require(shape.heads * shape.head_dim % block == 0,
                "--heads times --head-dim must be a multiple of " + std::to_string(block));
        require(shape.used <= shape.experts, "--used must not be more than --experts");
        require(shape.topics < std::min(shape.embd, shape.vocab), "--topics must be fewer than --embd and --vocab");
        basis_ = std::make_shared<Vectors>(directions(1 + shape.topics, shape.embd, Random(shape.seed, "directions")));
        lean_ = lean(shape);
    }

    std::vector<TensorPlan> plan() {
        embedding();
        norm("output_norm", shape_.embd);
        matrix("output", shape_.embd, {shape_.vocab}, logit_gain, GGML_TYPE_Q8_0);
        for (int layer = 0; layer < shape_.layers; ++layer) { block(layer); }
        return std::move(tensors_);
    }

  private:
    static void require(bool met, const std::string & problem) {
        if (!met) { throw std::invalid_argument(problem); }
    }

    void block(int layer) {
        const std::string b = "blk." + std::to_string(layer) + ".";
        const int64_t embd = shape_.embd;
        const int64_t width = shape_.heads * shape_.head_dim;
        const int64_t kv = shape_.kv_heads * shape_.head_dim;
        const double attention = std::sqrt(attention_variance / shape_.layers);
        // The chosen experts' outputs are independent and weighted by about 1 / used each.
        const double routed = std::sqrt(routed_variance / shape_.layers * shape_.used);
        norm(b + "attn_norm", embd);
        matrix(b + "attn_q", embd, {width}, 1, quant_);
        matrix(b + "attn_k", embd, {kv}, 1, quant_);
        matrix(b + "attn_v", embd, {kv}, 1, quant_);
        matrix(b + "attn_output", width, {embd}, attention, quant_);
        norm(b + "attn_q_norm", shape_.head_dim);
        norm(b + "attn_k_norm", shape_.head_dim);
        norm(b + "ffn_norm", embd);
        router(b + "ffn_gate_inp.weight", layer);
        matrix(b + "ffn_gate_exps", embd, {shape_.ff, shape_.experts}, 1, quant_);
        matrix(b + "ffn_up_exps", embd, {shape_.ff, shape_.experts}, 1, quant_);
        matrix(b + "ffn_down_exps", shape_.ff, {embd, shape_.experts}, routed, quant_);
    }

    // Weights whose output is `gain` times as loud as white input.
    void matrix(const std::string & name, int64_t columns, std::vector<int64_t> rest, double gain, ggml_type type) {
        std::vector<int64_t> ne = {columns};
        ne.insert(ne.end(), rest.begin(), rest.end());
        const double deviation = gain / std::sqrt(static_cast<double>(columns));
        const std::string full = name + ".weight";
        const int64_t row_blocks = columns / ggml_blck_size(type);
        const auto fill = [=, seed = shape_.seed](int64_t first, int64_t count, uint8_t * out) {
            Random random(seed, full, static_cast<uint64_t>(first));
            fill_random(type, deviation, count * row_blocks, random, out);
        };
        tensors_.push_back({full, type, ne, fill});
    }

    void norm(const std::string & name, int64_t width) {
        const auto fill = [width](int64_t, int64_t count, uint8_t * out) {
            const std::vector<float> ones(static_cast<size_t>(width * count), 1.0F);
            std::copy_n(reinterpret_cast<const uint8_t *>(ones.data()), ones.size() * sizeof(float), out);
        };
        tensors_.push_back({name + ".weight", GGML_TYPE_F32, {width}, fill});
    }

    // Half of each token's energy is its own, half the direction that it shares with its topic and with all tokens.
    void embedding() {
        const auto fill = [shape = shape_, basis = basis_](int64_t first, int64_t count, uint8_t * out) {
            std::vector<float> rows(static_cast<size_t>(count * shape.embd));
            Random random(shape.seed, "token_embd", static_cast<uint64_t>(first));
            for (int64_t row = 0; row < count; ++row) {
                const int64_t topic = (first + row) * shape.topics / shape.vocab;
                const std::vector<float> & common = basis->front();
                const std::vector<float> & topical = (*basis)[static_cast<size_t>(1 + topic)];
                const double length = std::sqrt(shape.embd);
                float * x = rows.data() + row * shape.embd;
                for (size_t i = 0; i < static_cast<size_t>(shape.embd); ++i) {
                    const double shared =
                        std::sqrt(1 - shape.drift) * common[i] + std::sqrt(shape.drift) * topical[i];
                    x[i] = static_cast<float>((random.normal() + length * shared) / std::sqrt(2.0));
                }
            }
            ggml_quantize_chunk(GGML_TYPE_Q8_0, rows.data(), out, 0, count, shape.embd, nullptr);
        };
        tensors_.push_back({"token_embd.weight", GGML_TYPE_Q8_0, {shape_.embd, shape_.vocab}, fill});
    }

    // Rows that know nothing of the shared directions, plus the lean towards them.
    void router(const std::string & name, int layer) {
        // Layers add to the stream, which thins the shared directions, so routers of later layers lean harder; but by
        // less than the thinning, because experts answer the shared directions alike, which favours experts as well.
        const double depth = static_cast<double>(layer) / shape_.layers;
        const double thinned = 1 + thinning * (attention_variance + routed_variance) * depth;
        const double shared = std::sqrt(0.5 / thinned);
        const double row_lean = lean_ * std::sqrt(1 - shared * shared) / shared;
        const auto fill = [=, shape = shape_, basis = basis_](int64_t first, int64_t count, uint8_t * out) {
            const Popularity popular = popularity(shape, layer);
            auto * x = reinterpret_cast<float *>(out);
            for (int64_t e = first; e < first + count; ++e, x += shape.embd) {
                Random random(shape.seed, name, static_cast<uint64_t>(e));
                std::vector<float> row(static_cast<size_t>(shape.embd));
                for (float & each : row) { each = random.normal(); }
                for (const auto & b : *basis) { add(row, -dot(row, b), b); }
                const auto expert = static_cast<size_t>(e);
                add(row, row_lean * std::sqrt(1 - shape.drift) * popular.common[expert], basis->front());
                for (size_t topic = 0; topic < popular.topical.size(); ++topic) {
                    add(row, row_lean * std::sqrt(shape.drift) * popular.topical[topic][expert], (*basis)[1 + topic]);
                }
                for (size_t i = 0; i < row.size(); ++i) {
                    x[i] = static_cast<float>(row[i] / std::sqrt(static_cast<double>(shape.embd)));
                }
            }
        };
        tensors_.push_back({name, GGML_TYPE_F32, {shape_.embd, shape_.experts}, fill});
    }

    const Shape shape_;
    const ggml_type quant_;
    std::shared_ptr<const Vectors> basis_;  // the common direction, then one a topic
    double lean_ = 0;
    std::vector<TensorPlan> tensors_;
};

// GPT-2's printable stand-in for each byte, as UTF-8.
std::vector<std::string> byte_alphabet() {
    std::vector<std::string> alphabet;
    unsigned spare = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 33 && byte < 127) || (byte >= 161 && byte < 173) || byte >= 174;
        const unsigned point = printable ? byte : spare++;
        if (point < 128) {
            alphabet.emplace_back(1, static_cast<char>(point));
        } else {
            alphabet.push_back({static_cast<char>(0xc0 | (point >> 6)), static_cast<char>(0x80 | (point & 63))});
        }
    }
    return alphabet;
}

// Byte tokens, begin and end of text, one pair because the format wants a merge; the rest of the vocabulary is unused.
void set_vocabulary(gguf_context * gguf, const Shape & shape) {
    constexpr int32_t normal = 1, control = 3, unused = 5;
    std::vector<std::string> tokens = byte_alphabet();
    std::vector<int32_t> types(tokens.size(), normal);
    for (const char * name : {"<|begin|>", "<|end|>"}) {
        tokens.emplace_back(name);
        types.push_back(control);
    }
    tokens.emplace_back("et");
    types.push_back(normal);
    for (int i = 0; static_cast<int>(tokens.size()) < shape.vocab; ++i) {
        tokens.push_back("<|unused_" + std::to_string(i) + "|>");
        types.push_back(unused);
    }
    std::vector<const char *> texts;
    for (const std::string & token : tokens) { texts.push_back(token.c_str()); }
    const char * merges[] = {"e t"};
    gguf_set_val_str(gguf, "tokenizer.ggml.model", "gpt2");
    gguf_set_val_str(gguf, "tokenizer.ggml.pre", "gpt-2");
    gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", texts.data(), texts.size());
    gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
    gguf_set_arr_str(gguf, "tokenizer.ggml.merges", merges, 1);
    gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", byte_tokens);
    gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", byte_tokens + 1);
    gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", false);
}

}  // namespace

int64_t TensorPlan::rows() const {
    int64_t rows = 1;
    for (size_t i = 1; i < ne.size(); ++i) { rows *= ne[i]; }
    return rows;
}

std::vector<TensorPlan> plan_tensors(const Shape & shape) { return Planner(shape).plan(); }

void set_metadata(gguf_context * gguf, const Shape & shape) {
    const auto number = [&](const std::string & key, int value) {
        gguf_set_val_u32(gguf, ("qwen3moe." + key).c_str(), static_cast<uint32_t>(value));
    };
    gguf_set_val_str(gguf, "general.architecture", "qwen3moe");
    gguf_set_val_str(gguf, "general.name", "synthetic-qwen3moe");
    gguf_set_val_u32(gguf, "general.quantization_version", GGML_QNT_VERSION);
    number("block_count", shape.layers);
    number("context_length", 40960);
    number("embedding_length", shape.embd);
    number("feed_forward_length", shape.ff * shape.used);
    number("attention.head_count", shape.heads);
    number("attention.head_count_kv", shape.kv_heads);
    number("attention.key_length", shape.head_dim);
    number("attention.value_length", shape.head_dim);
    number("rope.dimension_count", shape.head_dim);
    number("expert_count", shape.experts);
    number("expert_used_count", shape.used);
    number("expert_feed_forward_length", shape.ff);
    gguf_set_val_f32(gguf, "qwen3moe.attention.layer_norm_rms_epsilon", 1e-6F);
    gguf_set_val_f32(gguf, "qwen3moe.rope.freq_base", 1e6F);
    gguf_set_val_u32(gguf, topics_key, static_cast<uint32_t>(shape.topics));
    set_vocabulary(gguf, shape);
}

}  // namespace gpu
