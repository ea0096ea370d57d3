// Random weights in ggml's storage types, made block by block: no float copy of a big tensor ever exists.
#pragma once

#include <cstdint>

#include "ggml.h"
#include "random.h"

namespace gpu {

// Fills `blocks` blocks of `type` with weights of mean zero and standard deviation `deviation`.
// Throws std::invalid_argument for types other than F32, Q8_0, Q4_0 and Q4_K.
void fill_random(ggml_type type, double deviation, int64_t blocks, Random & random, uint8_t * out);

}  // namespace gpu
