"""RAM: how much there is, and how fast one thread and all threads read it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
from numpy.typing import NDArray

from moetune.hardware.cgroups import CgroupLimits
from moetune.hardware.machine import NOT_MEASURED, Bandwidth, Cpu, Memory, Missing
from moetune.hardware.timing import measure_rate

MIB = 1 << 20
_SMALLEST_BYTES = 256 * MIB
_LARGEST_BYTES = 2048 * MIB
_BYTES_A_THREAD = 32 * MIB


def read_memory(limits: CgroupLimits, threads: int) -> Memory:
    """Sizes only; the rates are left to ``measure_memory``."""
    ram = psutil.virtual_memory()
    swap = psutil.swap_memory()
    total, available = ram.total, ram.available
    if limits.memory_bytes is not None and limits.memory_bytes < total:
        total = limits.memory_bytes
        available = min(available, max(0, total - (limits.memory_used_bytes or 0)))
    return Memory(
        total_bytes=total,
        available_bytes=available,
        swap_total_bytes=swap.total,
        swap_free_bytes=swap.free,
        read_1_thread=None,
        read_all_threads=None,
        threads=threads,
        missing=(Missing("read_1_thread", NOT_MEASURED), Missing("read_all_threads", NOT_MEASURED)),
    )


def measure_memory(memory: Memory, cpu: Cpu, budget_s: float = 1.0) -> Memory:
    """Read rates over a buffer that no cache holds; None, with the reason, where too little RAM is available."""
    size = buffer_bytes(cpu.last_level_cache_bytes, memory.threads, memory.available_bytes)
    if size < 16 * MIB:
        reason = f"only {memory.available_bytes // MIB} MiB of RAM available"
        return replace(memory, missing=(Missing("read_1_thread", reason), Missing("read_all_threads", reason)))
    words: NDArray[np.int64] = np.empty(size // 8, dtype=np.int64)
    with ThreadPoolExecutor(memory.threads) as pool:
        # Each thread touches first what it will read, so that on NUMA machines its pages lie near it.
        list(pool.map(lambda part: part.fill(1), np.array_split(words, memory.threads)))
    return replace(
        memory,
        read_1_thread=_read_rate(words, 1, budget_s / 2),
        read_all_threads=_read_rate(words, memory.threads, budget_s / 2),
        missing=(),
    )


def buffer_bytes(cache_bytes: int | None, threads: int, available_bytes: int) -> int:
    """Twice the last-level caches and 32 MiB a thread, between 256 MiB and 2 GiB, never over a quarter of free RAM."""
    wanted = max(_SMALLEST_BYTES, 2 * (cache_bytes or 0), threads * _BYTES_A_THREAD)
    return min(wanted, _LARGEST_BYTES, available_bytes // 4)


def _read_rate(words: NDArray[np.int64], threads: int, budget_s: float) -> Bandwidth:
    parts = np.array_split(words, threads)
    together = threading.Barrier(threads)

    def read(part: NDArray[np.int64]) -> tuple[float, float]:
        together.wait()
        start = time.perf_counter()
        # An integer sum is one load and one add a word, releases the GIL, and runs at 70 GB/s when cached.
        np.add.reduce(part)
        return start, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:

        def timed_pass() -> float:
            spans = list(pool.map(read, parts))
            return max(end for _, end in spans) - min(start for start, _ in spans)

        return measure_rate(timed_pass, words.nbytes, budget_s)
