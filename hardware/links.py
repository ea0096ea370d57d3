"""How fast bytes travel between RAM and one device: pinned and pageable, in bulk and one expert at a time."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from moetune.hardware.ggml import TYPE_I8, allocated, tensor_context
from moetune.hardware.machine import Bandwidth, GgmlDevice, Link, Missing, Transfers
from moetune.hardware.matvec import measure_device_memory
from moetune.hardware.timing import measure_rate, stopwatch

KIB = 1 << 10
MIB = 1 << 20
BULK_BYTES = 64 * MIB
EXPERT_BYTES = 4 * MIB
_SMALLEST_FREE_BYTES = 64 * KIB
# Long enough to drown the fixed cost of a transfer, short enough for several passes on a slow link.
_BULK_PASS_S = 0.02
_NO_PINNED = "the device offers no pinned host memory"


def measure_link(
    library: ctypes.CDLL, handle: int, device: GgmlDevice, expert_bytes: int = EXPERT_BYTES, budget_s: float = 1.5
) -> Link:
    """Transfers and device memory of one device, within about ``budget_s`` and half of its free memory."""
    if device.memory_free_bytes < _SMALLEST_FREE_BYTES:
        return _unmeasured(device, f"only {device.memory_free_bytes} B of device memory are free")
    room = device.memory_free_bytes // 2
    missing: list[Missing] = []
    buffer_type = library.ggml_backend_dev_buffer_type(handle)
    with ExitStack() as stack:
        tensor_bytes = min(max(BULK_BYTES, expert_bytes), room)
        context = stack.enter_context(tensor_context(library, 1))
        tensor = library.ggml_new_tensor_1d(context, TYPE_I8, tensor_bytes)
        if stack.enter_context(allocated(library, context, buffer_type)) is None:
            return _unmeasured(device, f"the device could not allocate {tensor_bytes} B")
        pageable = np.ones(tensor_bytes, dtype=np.uint8)
        pinned = stack.enter_context(_pinned_memory(library, handle, tensor_bytes))
        if pinned is None:
            missing.append(Missing("pinned", _NO_PINNED))
        way = _Way(library, tensor, tensor_bytes, pageable.ctypes.data, pinned, budget_s / 10)
        one_expert = min(expert_bytes, tensor_bytes)
        bulk = way.transfers(way.bulk_bytes(one_expert))
        expert = way.transfers(one_expert)
    device_memory = measure_device_memory(library, handle, room, budget_s / 5)
    if isinstance(device_memory, str):
        missing.append(Missing("device_memory", device_memory))
    return Link(
        device=device.name,
        emulated=device.emulated,
        bulk=bulk,
        expert=expert,
        device_memory=device_memory if isinstance(device_memory, Bandwidth) else None,
        missing=tuple(missing),
    )


class _Way:
    """One device tensor and the host memory on the other side of the link."""

    def __init__(
        self, library: ctypes.CDLL, tensor: int, size: int, pageable: int, pinned: int | None, budget_s: float
    ) -> None:
        self._set = library.ggml_backend_tensor_set
        self._get = library.ggml_backend_tensor_get
        self._tensor = tensor
        self._size = size
        self._pageable = pageable
        self._pinned = pinned
        self._budget_s = budget_s

    def bulk_bytes(self, expert_bytes: int) -> int:
        """What crosses the link in ``_BULK_PASS_S``, in whole KiB: at most 64 MiB, at least an expert and 1 MiB."""
        first = min(MIB, self._size)
        rate = self._rate(self._set, self._pageable, first)
        wanted = int(rate.gbps * 1e9 * _BULK_PASS_S) // KIB * KIB
        return max(first, expert_bytes, min(wanted, BULK_BYTES, self._size))

    def transfers(self, size: int) -> Transfers:
        return Transfers(
            size_bytes=size,
            h2d_pinned=self._rate(self._set, self._pinned, size) if self._pinned else None,
            h2d_pageable=self._rate(self._set, self._pageable, size),
            d2h_pinned=self._rate(self._get, self._pinned, size) if self._pinned else None,
            d2h_pageable=self._rate(self._get, self._pageable, size),
        )

    def _rate(self, copy: Callable[..., object], host: int, size: int) -> Bandwidth:
        places = self._places(size)
        return measure_rate(stopwatch(lambda: copy(self._tensor, host + next(places), 0, size)), size, self._budget_s)

    def _places(self, size: int) -> Iterator[int]:
        # A new place each pass: an expert comes out of RAM, not out of a cache that the pass before has filled.
        place = 0
        while True:
            yield place
            place = place + size if place + 2 * size <= self._size else 0


@contextmanager
def _pinned_memory(library: ctypes.CDLL, handle: int, size: int) -> Iterator[int | None]:
    buffer_type = library.ggml_backend_dev_host_buffer_type(handle)
    buffer = library.ggml_backend_buft_alloc_buffer(buffer_type, size) if buffer_type else None
    try:
        # Where pinning fails, some backends hand out a pageable buffer of the CPU's type instead.
        pinned = buffer and library.ggml_backend_buffer_get_type(buffer) == buffer_type
        if pinned:
            library.ggml_backend_buffer_clear(buffer, 1)
        yield library.ggml_backend_buffer_get_base(buffer) if pinned else None
    finally:
        if buffer:
            library.ggml_backend_buffer_free(buffer)


def _unmeasured(device: GgmlDevice, reason: str) -> Link:
    fields = ("bulk", "expert", "device_memory")
    return Link(device.name, device.emulated, None, None, None, tuple(Missing(field, reason) for field in fields))
