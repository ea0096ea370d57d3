#include "weights.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace gpu {

namespace {

// Standard deviations of evenly spread codes.
const double four_bits = std::sqrt((16.0 * 16.0 - 1) / 12);
const double byte_codes = std::sqrt((255.0 * 255.0 - 1) / 12);

void put_half(double value, uint8_t * out) {
    const ggml_fp16_t half = ggml_fp32_to_fp16(static_cast<float>(value));
    std::memcpy(out, &half, sizeof(half));
}

void put_random(int bytes, Random & random, uint8_t * out) {
    for (int at = 0; at < bytes; at += 8) {
        const uint64_t bits = random.next();
        std::memcpy(out + at, &bits, 8);
    }
}

// Layouts are those of ggml-common.h: block_q4_0, block_q8_0, block_q4_K.

// Codes 0 to 15 stand for -8 to 7; scales of either sign centre them.
void q4_0(double deviation, Random & random, uint8_t * out) {
    const double scale = deviation / four_bits;
    put_half((random.next() & 1) == 0 ? scale : -scale, out);
    put_random(16, random, out + 2);
}

// -128 never occurs in a quantised file, and some kernels negate.
void q8_0(double deviation, Random & random, uint8_t * out) {
    put_half(deviation / byte_codes, out);
    put_random(32, random, out + 2);
    for (int i = 2; i < 34; ++i) {
        if (out[i] == 0x80) { out[i] = 0; }
    }
}

// Eight sub-blocks with six-bit scales and minimums. A minimum equal to its scale, in units of 7.5 d, centres them.
void q4_k(double deviation, Random & random, uint8_t * out) {
    constexpr unsigned lowest = 24, highest = 63;  // a constant scale would hide mistakes in unpacking
    static const double scale_rms = [] {
        double squares = 0;
        for (unsigned s = lowest; s <= highest; ++s) { squares += static_cast<double>(s) * s; }
        return std::sqrt(squares / (highest - lowest + 1));
    }();
    const double d = deviation / four_bits / scale_rms;
    put_half(d, out);
    put_half(7.5 * d, out + 2);
    for (int j = 0; j < 4; ++j) {
        const auto low = static_cast<unsigned>(lowest + random.below(highest - lowest + 1));
        const auto high = static_cast<unsigned>(lowest + random.below(highest - lowest + 1));
        out[4 + j] = out[8 + j] = static_cast<uint8_t>(low | (high >> 4 << 6));
        out[12 + j] = static_cast<uint8_t>((high & 15) | ((high & 15) << 4));
    }
    put_random(128, random, out + 16);
}

void f32(double deviation, Random & random, uint8_t * out) {
    const float value = static_cast<float>(deviation) * random.normal();
    std::memcpy(out, &value, sizeof(value));
}

}  // namespace

void fill_random(ggml_type type, double deviation, int64_t blocks, Random & random, uint8_t * out) {
    void (*fill)(double, Random &, uint8_t *) = nullptr;
    switch (type) {
        case GGML_TYPE_F32: fill = f32; break;
        case GGML_TYPE_Q8_0: fill = q8_0; break;
        case GGML_TYPE_Q4_0: fill = q4_0; break;
        case GGML_TYPE_Q4_K: fill = q4_k; break;
        default: throw std::invalid_argument(std::string("no random weights of type ") + ggml_type_name(type));
    }
    const size_t block_bytes = ggml_type_size(type);
    for (int64_t block = 0; block < blocks; ++block, out += block_bytes) { fill(deviation, random, out); }
}

}  // namespace gpu
