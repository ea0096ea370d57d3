"""Whether the machine kept still: what was read before and after a stretch of measuring, and what moved in between."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from moetune.hardware.nvidia import Nvml

_MIB = 1 << 20
# Other programs' share of the processors. The kernel's own work stays below it on an idle desktop.
_MOST_FOREIGN_SHARE = 0.15
_MOST_CLOCK_CHANGE = 0.10
_MOST_SWAP_BYTES = 16 * _MIB
_MOST_MEMORY_SHARE = 0.05
_MOST_DEVICE_MEMORY_SHARE = 0.01
# NVML's reasons for a lower clock that say something is wrong: hardware slowdown, software and hardware thermal
# slowdown, power brake (nvml.h, nvmlClocksEventReason*). Idling and the usual power limit are not among them.
_THROTTLED = 0x08 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True)
class GpuConditions:
    """One NVIDIA GPU, by index."""

    free_bytes: int
    total_bytes: int
    throttled: bool


@dataclass(frozen=True)
class Conditions:
    """The machine at one moment. Seconds are of processor time since some start; None: this machine does not say.

    busy_s: all processors together, stolen time of virtual ones included. own_s: this process and its children.
    clock_mhz: of the fastest core. hot: some sensor is at its limit or beyond. throttles: times a core was slowed down.
    """

    at_s: float
    busy_s: float
    own_s: float
    cores: int
    clock_mhz: float | None
    hot: bool
    throttles: int
    swapped_bytes: int
    free_bytes: int
    total_bytes: int
    gpus: tuple[GpuConditions, ...]


def read_conditions(nvml: Nvml = pynvml, sysfs: Path = Path("/sys/devices/system/cpu")) -> Conditions:
    """The machine now. Takes a few milliseconds."""
    cpu, swap, memory = psutil.cpu_times(), psutil.swap_memory(), psutil.virtual_memory()
    idle_s = cpu.idle + getattr(cpu, "iowait", 0.0)
    # Linux counts a guest's time as its host process' own too.
    twice_s = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)
    return Conditions(
        at_s=time.monotonic(),
        busy_s=sum(cpu) - idle_s - twice_s,
        own_s=_own_s(),
        cores=psutil.cpu_count() or 1,
        clock_mhz=_clock_mhz(),
        hot=_hot(),
        throttles=_throttles(sysfs),
        swapped_bytes=swap.sin + swap.sout,
        free_bytes=memory.available,
        total_bytes=memory.total,
        gpus=_gpus(nvml),
    )


def disturbance(before: Conditions, after: Conditions) -> str | None:
    """What makes measurements between the two worthless, in words; None when the machine kept still."""
    found = [
        _foreign_load(before, after),
        _clock(before, after),
        strain(after),
        "the processor was slowed down" if after.throttles > before.throttles else None,
        "the system swapped" if after.swapped_bytes - before.swapped_bytes > _MOST_SWAP_BYTES else None,
        _memory(before, after),
        *(_gpu(*pair) for pair in zip(before.gpus, after.gpus, strict=False)),
    ]
    return next((words for words in found if words), None)


def strain(now: Conditions) -> str | None:
    """What holds the machine back at this moment, in words; None when nothing does."""
    if now.hot:
        return "a sensor reached its temperature limit"
    return "the GPU was slowed down" if any(gpu.throttled for gpu in now.gpus) else None


def _foreign_load(before: Conditions, after: Conditions) -> str | None:
    elapsed_s = after.at_s - before.at_s
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    share = foreign_s / (elapsed_s * after.cores) if elapsed_s > 0 else 0.0
    return f"other programs took {share:.0%} of the processors" if share > _MOST_FOREIGN_SHARE else None


def _clock(before: Conditions, after: Conditions) -> str | None:
    if not before.clock_mhz or not after.clock_mhz:
        return None
    change = after.clock_mhz / before.clock_mhz - 1
    return f"the processor's clock changed by {change:+.0%}" if abs(change) > _MOST_CLOCK_CHANGE else None


def _memory(before: Conditions, after: Conditions) -> str | None:
    lost = (before.free_bytes - after.free_bytes) / before.total_bytes
    return f"other programs took {lost:.0%} of the RAM" if lost > _MOST_MEMORY_SHARE else None


def _gpu(before: GpuConditions, after: GpuConditions) -> str | None:
    moved_bytes = abs(before.free_bytes - after.free_bytes)
    if moved_bytes > _MOST_DEVICE_MEMORY_SHARE * before.total_bytes:
        return f"{moved_bytes / _MIB:,.0f} MiB of the GPU's memory changed hands"
    return None


def _own_s() -> float:
    """Children that have ended are in this process' own figures; the others tell themselves."""
    times = os.times()
    total_s = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            spent = child.cpu_times()
            total_s += spent.user + spent.system + spent.children_user + spent.children_system
    return total_s


def _clock_mhz() -> float | None:
    try:
        return max((core.current for core in psutil.cpu_freq(percpu=True)), default=None)
    except (NotImplementedError, OSError, AttributeError, RuntimeError):
        return None  # containers and virtual machines often hide it


def _hot() -> bool:
    sensors: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()
    return any(s.high and s.current >= s.high for group in sensors.values() for s in group)


def _throttles(sysfs: Path) -> int:
    count = 0
    for file in sysfs.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            count += int(file.read_text())
    return count


def _gpus(nvml: Nvml) -> tuple[GpuConditions, ...]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(_gpu_now(nvml, handle) for handle in handles)
    except nvml.NVMLError:
        return ()
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _gpu_now(nvml: Nvml, handle: object) -> GpuConditions:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    throttled = False
    with suppress(nvml.NVMLError):  # not every card tells
        throttled = bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & _THROTTLED)
    return GpuConditions(int(memory.free), int(memory.total), throttled)
