#include "traffic.h"

#include <cstring>
#include <vector>

namespace emu {

namespace {

// Ids outside [0, n_experts) mean "no expert" and touch nothing.
size_t count_distinct(const ggml_tensor & ids, int64_t n_experts) {
    std::vector<bool> seen(static_cast<size_t>(n_experts), false);
    size_t count = 0;
    for (int64_t row = 0; row < ids.ne[1]; ++row) {
        for (int64_t column = 0; column < ids.ne[0]; ++column) {
            int32_t id = 0;
            const size_t offset = static_cast<size_t>(row) * ids.nb[1] + static_cast<size_t>(column) * ids.nb[0];
            std::memcpy(&id, static_cast<const char *>(ids.data) + offset, sizeof(id));
            if (id < 0 || id >= n_experts || seen[static_cast<size_t>(id)]) { continue; }
            seen[static_cast<size_t>(id)] = true;
            ++count;
        }
    }
    return count;
}

size_t source_bytes(const ggml_tensor & node, size_t expert_bytes) {
    size_t bytes = 0;
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (node.src[i] == nullptr) { continue; }
        const bool only_rows = i == 0 && node.op == GGML_OP_GET_ROWS;
        const bool only_experts = i == 0 && node.op == GGML_OP_MUL_MAT_ID;
        bytes += only_experts ? expert_bytes : only_rows ? ggml_nbytes(&node) : ggml_nbytes(node.src[i]);
    }
    return bytes;
}

size_t node_bytes(const ggml_tensor & node, size_t expert_bytes) {
    // The result is the whole destination, typically the KV cache, of which only the new rows are written.
    if (node.op == GGML_OP_SET_ROWS) { return 2 * ggml_nbytes(node.src[0]) + ggml_nbytes(node.src[1]); }
    return ggml_nbytes(&node) + source_bytes(node, expert_bytes);
}

}  // namespace

bool computes(const ggml_tensor & node) {
    switch (node.op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return false;
        default: return (node.flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_is_empty(&node);
    }
}

ggml_status compute_counting(CpuBackend & cpu, ggml_cgraph & graph, Traffic & traffic) {
    const ggml_tensor * counted_ids = nullptr;
    size_t n_distinct = 0;
    int first = 0;
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor & node = *graph.nodes[i];
        if (!computes(node)) { continue; }
        size_t expert_bytes = 0;
        if (node.op == GGML_OP_MUL_MAT_ID) {
            if (node.src[2] != counted_ids) {
                if (i > first) {
                    ggml_cgraph before = ggml_abi::slice(graph, first, i);
                    const ggml_status status = cpu.compute(before);
                    if (status != GGML_STATUS_SUCCESS) { return status; }
                    first = i;
                }
                counted_ids = node.src[2];
                n_distinct = count_distinct(*counted_ids, node.src[0]->ne[2]);
            }
            expert_bytes = n_distinct * node.src[0]->nb[2];
        }
        ++traffic.launches;
        traffic.bytes += node_bytes(node, expert_bytes);
        traffic.expert_bytes += expert_bytes;
    }
    if (first == 0) { return cpu.compute(graph); }
    ggml_cgraph rest = ggml_abi::slice(graph, first, graph.n_nodes);
    return cpu.compute(rest);
}

}  // namespace emu
