"""The processor: its model, its cores, and the instruction sets ggml has kernels for."""

import functools
import math
import os
import platform
from pathlib import Path
from typing import Any

import cpuinfo
import psutil

from moetune.hardware.cgroups import CgroupLimits
from moetune.hardware.machine import Cpu

# The kernel's flag names (and py-cpuinfo's own spellings) on the left, the names used here on the right.
_INSTRUCTION_SETS = {
    "pni": "sse3",
    "ssse3": "ssse3",
    "avx": "avx",
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512_vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "vsx": "vsx",
}


def read_cpu(limits: CgroupLimits, sysfs: Path = Path("/sys/devices/system/cpu")) -> Cpu:
    """What py-cpuinfo and psutil know, plus the limits on this process."""
    info = _cpu_info()
    logical = psutil.cpu_count(logical=True) or 1
    return Cpu(
        model=str(info.get("brand_raw") or platform.processor() or platform.machine()),
        arch=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable_cores=usable_cores(len(_affinity(logical)), limits.cores),
        instruction_sets=instruction_sets(info.get("flags", [])),
        last_level_cache_bytes=last_level_cache_bytes(sysfs),
    )


def instruction_sets(flags: list[str]) -> tuple[str, ...]:
    """The flags that matter to ggml, each under one name, sorted."""
    return tuple(sorted({_INSTRUCTION_SETS[flag] for flag in flags if flag in _INSTRUCTION_SETS}))


def usable_cores(affinity: int, quota: float | None) -> int:
    """Whole cores under both limits, at least one: a thread on a fraction of a core stalls all the others."""
    return max(1, min(affinity, math.floor(quota) if quota is not None else affinity))


def last_level_cache_bytes(sysfs: Path) -> int | None:
    """All last-level caches together, or None where the kernel does not say (py-cpuinfo reports one line of it)."""
    caches: dict[str, tuple[int, int]] = {}
    for index in sysfs.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if size.endswith("K") and size[:-1].isdigit():
            caches[f"{level}:{shared}"] = (level, int(size[:-1]) * 1024)
    last = max((level for level, _ in caches.values()), default=0)
    return sum(size for level, size in caches.values() if level == last) or None


def _affinity(logical: int) -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(logical))


@functools.cache
def _cpu_info() -> dict[str, Any]:
    # It starts a few subprocesses and takes about a second; nothing in it changes while this process lives.
    info: dict[str, Any] = cpuinfo.get_cpu_info()
    return info
