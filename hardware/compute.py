"""How fast each device computes: experts' products, products with a batch, and what each operation costs by itself.

Measured through ggml as llama.cpp would call it, so that an emulated device shows its throttled speeds like a real one.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from moetune.hardware.devices import device_handle
from moetune.hardware.ggml import (
    STATUS_SUCCESS,
    TYPE_F32,
    TYPE_I32,
    TYPE_Q4_0,
    allocated,
    tensor_context,
)
from moetune.hardware.machine import Bandwidth, Compute, DeviceKind, GgmlDevice, Missing
from moetune.hardware.timing import measure_rate, stopwatch

MIB = 1 << 20
_WIDTH = 1024
_USED = 8
_EXPERT_BYTES = _WIDTH * _WIDTH * 18 // 32  # a block of 32 Q4_0 weights takes 18 bytes
_MOST_EXPERTS = 512  # 288 MiB of Q4_0 weights: no last-level cache keeps them
_FIRST_EXPERTS = 16
_PASS_S = 0.05
# A batch of which each expert gets 64 tokens: 2 MiB in all, which also a small emulated device has.
_BATCH_TOKENS = 128
_BATCH_USED = 4
_BATCH_WIDTH = 512
_CHAIN_NODES = 64
_PARTS_OF_BUDGET = 4

_Figure = TypeVar("_Figure")


def measure_compute(
    library: ctypes.CDLL, devices: tuple[GgmlDevice, ...], threads: int, budget_s: float = 2.0
) -> tuple[Compute, ...]:
    """An entry a device that computes anything, in registry order; about ``budget_s`` each."""
    return tuple(
        _measure_device(library, device_handle(library, index), device, threads, budget_s / _PARTS_OF_BUDGET)
        for index, device in enumerate(devices)
        if device.kind is not DeviceKind.META
    )


def _measure_device(library: ctypes.CDLL, handle: int, device: GgmlDevice, threads: int, part_s: float) -> Compute:
    missing: list[Missing] = []

    def figure(field: str, measure: Callable[[], _Figure]) -> _Figure | None:
        try:
            return measure()
        except _Unmeasurable as reason:
            missing.append(Missing(field, str(reason)))
            return None

    room = device.memory_free_bytes // 2 if device.has_link else _MOST_EXPERTS * _EXPERT_BYTES
    with _opened(library, handle) as bench:
        threaded = not device.has_link and bench.set_threads(1)
        one = figure("experts_1_thread", lambda: bench.experts(room, part_s)) if threaded else None
        if not threaded:
            missing.append(Missing("experts_1_thread", "its threads cannot be set"))
        if threaded:
            bench.set_threads(threads)
        return Compute(
            device=device.name,
            emulated=device.emulated,
            threads=threads if threaded else 1,
            experts=figure("experts", lambda: bench.experts(room, part_s)),
            experts_1_thread=one,
            batch_gflops=figure("batch_gflops", lambda: bench.batch_gflops(part_s)),
            node_s=figure("node_s", lambda: bench.node_s(part_s)),
            join_s=figure("join_s", lambda: bench.join_s(part_s)),
            missing=tuple(missing),
        )


class _Unmeasurable(Exception):
    """A figure that this device does not give; the message says why."""


@contextmanager
def _opened(library: ctypes.CDLL, handle: int) -> Iterator["_Bench"]:
    backend = library.ggml_backend_dev_init(handle, None)
    try:
        yield _Bench(library, handle, backend or None)
    finally:
        if backend:
            library.ggml_backend_free(backend)


@dataclass(frozen=True)
class _Bench:
    """One backend, and the graphs that are timed on it. Every measurement raises _Unmeasurable where it cannot be."""

    library: ctypes.CDLL
    handle: int
    backend: int | None

    def set_threads(self, threads: int) -> bool:
        """Whether the backend takes a number of threads at all."""
        if self.backend is None:
            return False
        registry = self.library.ggml_backend_dev_backend_reg(self.handle)
        address = self.library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        if address:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(self.backend, threads)
        return bool(address)

    def experts(self, room_bytes: int, budget_s: float) -> Bandwidth:
        """Experts' weights read a second: a first, small round tells how many fit into one pass."""
        most = min(_MOST_EXPERTS, room_bytes // _EXPERT_BYTES) // _USED * _USED
        if most < _USED:
            raise _Unmeasurable(f"only {room_bytes / MIB:.1f} MiB are free")
        first = self._experts(min(_FIRST_EXPERTS, most), budget_s / 4)
        wanted = int(first.gbps * 1e9 * _PASS_S) // _EXPERT_BYTES // _USED * _USED
        return self._experts(max(_USED, min(most, wanted)), budget_s * 3 / 4)

    def _experts(self, n: int, budget_s: float) -> Bandwidth:
        library, steps = self.library, n // _USED
        chosen: list[int] = []

        def build(context: int) -> list[int]:
            weights = library.ggml_new_tensor_3d(context, TYPE_Q4_0, _WIDTH, _WIDTH, n)
            x = library.ggml_new_tensor_3d(context, TYPE_F32, _WIDTH, 1, 1)
            chosen.extend(library.ggml_new_tensor_2d(context, TYPE_I32, _USED, 1) for _ in range(steps))
            return [library.ggml_mul_mat_id(context, weights, x, ids) for ids in chosen]

        with self._graph(build, 2 * steps + 2, steps) as compute:
            # Every expert once a pass, in no order: what comes out of memory has not been near the processor before.
            order = np.random.default_rng(0).permutation(n).astype(np.int32).reshape(steps, _USED)
            for ids, row in zip(chosen, order, strict=True):
                library.ggml_backend_tensor_set(ids, row.ctypes.data, 0, row.nbytes)
            return measure_rate(stopwatch(compute), n * _EXPERT_BYTES, budget_s)

    def batch_gflops(self, budget_s: float) -> float:
        """Operations of experts' products with a batch of prompt processing, in 1e9 a second."""
        library = self.library
        chosen: list[int] = []

        def build(context: int) -> list[int]:
            weights = library.ggml_new_tensor_3d(context, TYPE_Q4_0, _BATCH_WIDTH, _BATCH_WIDTH, _USED)
            batch = library.ggml_new_tensor_3d(context, TYPE_F32, _BATCH_WIDTH, 1, _BATCH_TOKENS)
            chosen.append(library.ggml_new_tensor_2d(context, TYPE_I32, _BATCH_USED, _BATCH_TOKENS))
            return [library.ggml_mul_mat_id(context, weights, batch, chosen[0])]

        with self._graph(build, 4, 1) as compute:
            ids = np.arange(_BATCH_USED * _BATCH_TOKENS, dtype=np.int32) % _USED
            library.ggml_backend_tensor_set(chosen[0], ids.ctypes.data, 0, ids.nbytes)
            operations = 2 * _BATCH_WIDTH * _BATCH_WIDTH * _BATCH_USED * _BATCH_TOKENS
            return measure_rate(stopwatch(compute), operations, budget_s).gbps

    def node_s(self, budget_s: float) -> float:
        """Seconds that each further tiny operation of a graph adds."""
        long_s, short_s = (self._chain_s(nodes, budget_s / 2) for nodes in (_CHAIN_NODES, 1))
        return max(1e-9, (long_s - short_s) / (_CHAIN_NODES - 1))

    def _chain_s(self, nodes: int, budget_s: float) -> float:
        with self._graph(lambda context: [self._chain(context, nodes)], nodes + 1, nodes) as compute:
            return _seconds(compute, budget_s)

    def join_s(self, budget_s: float) -> float:
        """Seconds of what a layer waits for whose experts lie elsewhere: a row down, a row up, the rest started."""
        library = self.library
        ends: list[int] = []

        def build(context: int) -> list[int]:
            start = library.ggml_new_tensor_1d(context, TYPE_F32, _USED)
            ends.extend((start, library.ggml_sqr(context, start)))
            return ends[1:]

        row = np.ones(_USED, np.float32)
        with self._graph(build, 2, 1) as compute:

            def join() -> None:
                library.ggml_backend_tensor_get(ends[1], row.ctypes.data, 0, row.nbytes)
                library.ggml_backend_tensor_set(ends[0], row.ctypes.data, 0, row.nbytes)
                compute()

            return _seconds(join, budget_s)

    def _chain(self, context: int, nodes: int) -> int:
        tensor: int = self.library.ggml_new_tensor_1d(context, TYPE_F32, _USED)
        for _ in range(nodes):
            tensor = self.library.ggml_sqr(context, tensor)
        return tensor

    @contextmanager
    def _graph(self, build: Callable[[int], list[int]], tensors: int, nodes: int) -> Iterator[Callable[[], object]]:
        """Compute the graph that ends in what `build` returns, weights and inputs all 0."""
        library = self.library
        if self.backend is None:
            raise _Unmeasurable("the device could not be initialised")
        with ExitStack() as stack:
            context = stack.enter_context(tensor_context(library, tensors, nodes + tensors))
            ends = build(context)
            if not all(library.ggml_backend_dev_supports_op(self.handle, end) for end in ends):
                raise _Unmeasurable("the device does not compute this operation")
            buffer_type = library.ggml_backend_dev_buffer_type(self.handle)
            buffer = stack.enter_context(allocated(library, context, buffer_type))
            if buffer is None:
                raise _Unmeasurable("the device has not enough memory")
            library.ggml_backend_buffer_clear(buffer, 0)
            graph = library.ggml_new_graph_custom(context, nodes + tensors, False)
            for end in ends:
                library.ggml_build_forward_expand(graph, end)
            if library.ggml_backend_graph_compute(self.backend, graph) != STATUS_SUCCESS:
                raise _Unmeasurable("the device failed to compute")
            yield lambda: library.ggml_backend_graph_compute(self.backend, graph)


def _seconds(action: Callable[[], object], budget_s: float) -> float:
    return 1 / (measure_rate(stopwatch(action), 1, budget_s).gbps * 1e9)
