// The text that every arm is measured on: random tokens whose topic changes every so often.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gpu {

struct Trace {
    std::vector<int32_t> tokens;
    std::vector<int> topic;  // of each token
};

// `n` tokens, the same for the same arguments. Topics are those of the model's vocabulary; a stay lasts `stay` tokens.
Trace make_trace(int n, int n_vocab, int topics, int stay, uint64_t seed);

}  // namespace gpu
