// A qwen3moe model on paper: its metadata, and its tensors with a recipe for each slab of rows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"
#include "shape.h"

namespace gpu {

struct TensorPlan {
    std::string name;
    ggml_type type;
    std::vector<int64_t> ne;  // ggml's order: ne[0] is a row
    // Writes rows [first, first + count). What it writes depends on `first`, so slabs must always be cut alike.
    std::function<void(int64_t first, int64_t count, uint8_t * out)> fill;

    int64_t rows() const;
    size_t row_bytes() const { return ggml_row_size(type, ne[0]); }
};

// Throws std::invalid_argument, naming the argument, when the sizes do not fit together.
std::vector<TensorPlan> plan_tensors(const Shape & shape);

void set_metadata(gguf_context * gguf, const Shape & shape);

}  // namespace gpu
