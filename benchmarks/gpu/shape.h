// What a generated model is: sizes in elements, and how unevenly it routes.
#pragma once

#include <cstdint>
#include <string>

namespace gpu {

struct Shape {
    int layers = 48;
    int embd = 2048;
    int heads = 32;
    int kv_heads = 4;
    int head_dim = 128;
    int experts = 128;
    int used = 8;
    int ff = 768;  // width of one expert
    int vocab = 151936;
    std::string quant = "q4_0";  // of the experts and of attention
    int topics = 8;              // of the vocabulary: token id * topics / vocab
    double top_share = 0.85;     // of all activations, to the busiest fifth of a layer's experts
    double drift = 0.25;         // 0 to 1: how far an expert's popularity depends on the topic
    uint64_t seed = 1;
};

// Tokens that are no text come first after the 256 byte tokens.
constexpr int byte_tokens = 256;
constexpr int control_tokens = 2;
constexpr const char * topics_key = "synthetic.topics";

}  // namespace gpu
