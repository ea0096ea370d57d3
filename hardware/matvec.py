"""How fast a device reads its own memory, measured as decoding does it: matrix times vector, F16 weights."""

import ctypes
from contextlib import ExitStack

from moetune.hardware.ggml import STATUS_SUCCESS, TYPE_F16, TYPE_F32, allocated, tensor_context
from moetune.hardware.machine import Bandwidth
from moetune.hardware.timing import measure_rate, stopwatch

KIB = 1 << 10
MIB = 1 << 20
_COLUMNS = 4096
_FEW_COLUMNS = 256
_FIRST_BYTES = 8 * MIB
# Larger than any device's last-level cache known in 2025 (256 MB), so that each round comes from memory.
_WEIGHT_BYTES = 512 * MIB
_MATRIX_BYTES = 64 * MIB
_PASS_S = 0.02
_MOST_ROUNDS = 16


def measure_device_memory(library: ctypes.CDLL, handle: int, room_bytes: int, budget_s: float) -> Bandwidth | str:
    """Bytes read by matrix-vector products a second, within ``room_bytes`` of device memory; or why not.

    A small product first tells how much fits into one pass: on a fast device many weights, several times over,
    so that the launch and the synchronisation at the end do not count; on a slow one few.
    """
    # Beside the weights lie the vector and an output for each product: at most an eighth, with the fewest columns.
    most = min(_WEIGHT_BYTES, room_bytes - room_bytes // 6)
    backend = library.ggml_backend_dev_init(handle, None)
    if not backend:
        return "the device could not be initialised"
    try:
        first = _measure(library, handle, backend, min(_FIRST_BYTES, most), 1, budget_s / 4)
        if isinstance(first, str):
            return first
        wanted = first.gbps * 1e9 * _PASS_S
        weights = int(min(most, max(wanted, _FIRST_BYTES)))
        rounds = max(1, min(_MOST_ROUNDS, int(wanted / weights)))
        return _measure(library, handle, backend, weights, rounds, budget_s * 3 / 4)
    finally:
        library.ggml_backend_free(backend)


def _measure(
    library: ctypes.CDLL, handle: int, backend: int, weight_bytes: int, rounds: int, budget_s: float
) -> Bandwidth | str:
    columns = _COLUMNS if weight_bytes >= MIB else _FEW_COLUMNS
    matrices = -(-weight_bytes // _MATRIX_BYTES)
    rows = max(1, weight_bytes // matrices // (2 * columns))
    nodes = matrices * rounds
    with ExitStack() as stack:
        context = stack.enter_context(tensor_context(library, matrices + nodes + 1, nodes + matrices + 1))
        vector = library.ggml_new_tensor_2d(context, TYPE_F32, columns, 1)
        weights = [library.ggml_new_tensor_2d(context, TYPE_F16, columns, rows) for _ in range(matrices)]
        products = [library.ggml_mul_mat(context, weight, vector) for _ in range(rounds) for weight in weights]
        if not library.ggml_backend_dev_supports_op(handle, products[0]):
            return "the device does not multiply F16 matrices"
        buffer = stack.enter_context(allocated(library, context, library.ggml_backend_dev_buffer_type(handle)))
        if buffer is None:
            return f"the device could not allocate {weight_bytes} B"
        library.ggml_backend_buffer_clear(buffer, 0)
        graph = library.ggml_new_graph_custom(context, nodes + matrices + 1, False)
        for product in products:
            library.ggml_build_forward_expand(graph, product)
        if library.ggml_backend_graph_compute(backend, graph) != STATUS_SUCCESS:
            return "the device failed to compute a matrix-vector product"
        bytes_a_node = sum(library.ggml_nbytes(tensor) for tensor in (weights[0], vector, products[0]))
        compute = stopwatch(lambda: library.ggml_backend_graph_compute(backend, graph))
        return measure_rate(compute, nodes * bytes_a_node, budget_s)
