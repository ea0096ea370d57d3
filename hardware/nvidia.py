"""NVIDIA GPUs through NVML. The module is a parameter, so that tests put a made-up machine in its place."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import pynvml

from moetune.hardware.machine import Missing, NvidiaGpu

T = TypeVar("T")


class Nvml(Protocol):
    """The part of ``pynvml`` that is used."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> int: ...
    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int: ...
    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int: ...
    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]: ...
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int: ...
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int: ...


class Gpus(NamedTuple):
    """The GPUs found, and the reason when there is none."""

    found: tuple[NvidiaGpu, ...]
    reason: str | None


def read_gpus(nvml: Nvml = pynvml) -> Gpus:
    """Every GPU that NVML lists; a missing driver is a reason, not an error."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus((), f"no NVIDIA driver: {error}")
    try:
        count = nvml.nvmlDeviceGetCount()
        found = tuple(_read_gpu(nvml, index) for index in range(count))
    except nvml.NVMLError as error:
        return Gpus((), f"NVML could not list the GPUs: {error}")
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return Gpus(found, None if found else "the NVIDIA driver lists no GPU")


def _read_gpu(nvml: Nvml, index: int) -> NvidiaGpu:
    missing: list[Missing] = []

    def ask(field: str, query: Callable[[], T]) -> T | None:
        try:
            return query()
        except nvml.NVMLError as error:
            missing.append(Missing(field, str(error)))
            return None

    handle = ask("handle", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        reason = missing[0].reason
        fields = [name for name in NvidiaGpu.__dataclass_fields__ if name not in ("index", "missing")]
        nothing: dict[str, Any] = dict.fromkeys(fields)
        return NvidiaGpu(index=index, missing=tuple(Missing(name, reason) for name in fields), **nothing)
    return NvidiaGpu(
        index=index,
        name=ask("name", lambda: nvml.nvmlDeviceGetName(handle)),
        uuid=ask("uuid", lambda: nvml.nvmlDeviceGetUUID(handle)),
        pci_bus_id=ask("pci_bus_id", lambda: _bus_id(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        driver_version=ask("driver_version", nvml.nvmlSystemGetDriverVersion),
        vram_total_bytes=ask("vram_total_bytes", lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        vram_free_bytes=ask("vram_free_bytes", lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).free)),
        pcie_gen_now=ask("pcie_gen_now", lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
        pcie_gen_max=ask("pcie_gen_max", lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)),
        pcie_width_now=ask("pcie_width_now", lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
        pcie_width_max=ask("pcie_width_max", lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)),
        compute_capability=ask(
            "compute_capability", lambda: "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle))
        ),
        power_limit_w=ask("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        missing=tuple(missing),
    )


def _bus_id(text: str) -> str:
    # NVML writes an 8-digit domain in capitals; ggml, whose device ids this must equal, writes 4 digits in lower case.
    return text.lower()[-len("0000:00:00.0") :]
