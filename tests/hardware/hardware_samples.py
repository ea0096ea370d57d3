"""A made-up machine, and a made-up NVML, for tests that need no hardware."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from moetune.hardware.machine import (
    Bandwidth,
    Cpu,
    DeviceKind,
    Disk,
    GgmlDevice,
    Link,
    Machine,
    Memory,
    Missing,
    NvidiaGpu,
    ReadMethod,
    Software,
    Transfers,
)

GIB = 1 << 30
MIB = 1 << 20


def bandwidth(gbps: float = 20.0) -> Bandwidth:
    return Bandwidth(gbps=gbps, gbps_min=gbps * 0.9, gbps_max=gbps * 1.1, passes=5, bytes_per_pass=64 * MIB)


def gpu(index: int = 0, name: str = "NVIDIA H100 80GB HBM3", driver: str = "580.65.06") -> NvidiaGpu:
    return NvidiaGpu(
        index=index,
        name=name,
        uuid=f"GPU-0000-{index}",
        pci_bus_id=f"0000:c{index}:00.0",
        driver_version=driver,
        vram_total_bytes=80 * GIB,
        vram_free_bytes=79 * GIB,
        pcie_gen_now=1,
        pcie_gen_max=5,
        pcie_width_now=16,
        pcie_width_max=16,
        compute_capability="9.0",
        power_limit_w=700.0,
        missing=(),
    )


def device(name: str = "CUDA0", description: str = "NVIDIA H100", kind: DeviceKind = DeviceKind.GPU) -> GgmlDevice:
    return GgmlDevice(name, description, kind, 80 * GIB, 79 * GIB, "0000:c0:00.0")


def emulated_device(description: str = "emulated accelerator (link 0.25 GB/s)") -> GgmlDevice:
    return GgmlDevice("EMU0", description, DeviceKind.GPU, 256 * MIB, 200 * MIB, None)


def transfers(size_bytes: int, gbps: float, pinned: bool = True) -> Transfers:
    return Transfers(
        size_bytes=size_bytes,
        h2d_pinned=bandwidth(gbps) if pinned else None,
        h2d_pageable=bandwidth(gbps / 2),
        d2h_pinned=bandwidth(gbps) if pinned else None,
        d2h_pageable=bandwidth(gbps / 2),
    )


def link(name: str = "CUDA0", emulated: bool = False, gbps: float = 24.123) -> Link:
    return Link(
        device=name,
        emulated=emulated,
        bulk=transfers(64 * MIB, gbps, pinned=not emulated),
        expert=transfers(4 * MIB, gbps * 0.8, pinned=not emulated),
        device_memory=bandwidth(gbps * 80),
        missing=(Missing("pinned", "the device offers no pinned host memory"),) if emulated else (),
    )


def machine(**changes: Any) -> Machine:
    fields: dict[str, Any] = {
        "cpu": Cpu("AMD EPYC 9354", "x86_64", 16, 32, 32, ("avx", "avx2", "fma"), 256 * MIB),
        "memory": Memory(
            126 * GIB - 5 * MIB, 100 * GIB, 8 * GIB, 8 * GIB, bandwidth(20), bandwidth(180), threads=32, missing=()
        ),
        "devices": (GgmlDevice("CPU", "AMD EPYC 9354", DeviceKind.CPU, 126 * GIB, 100 * GIB, None), device()),
        "gpus": (gpu(),),
        "links": (link(),),
        "disk": Disk("/models", "xfs", "/dev/nvme0n1", 500 * GIB, bandwidth(6.5), ReadMethod.DIRECT, missing=()),
        "software": Software("Debian GNU/Linux 12", "6.1.0", "0.3.36", "0.25.3", "0c1e570"),
        "probed_at": "2026-01-02T03:04:05+00:00",
        "measured_at": "2026-01-02T03:04:05+00:00",
        "missing": (),
    }
    return Machine(**(fields | changes))


def unsupported() -> pynvml.NVMLError:
    return pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@dataclass
class FakeNvml:
    """``count`` GPUs; the functions named in ``failing`` raise, ``init_error`` stands for a missing driver."""

    count: int = 1
    failing: frozenset[str] = frozenset()
    init_error: pynvml.NVMLError | None = None
    running: int = 0
    throttle_reasons: int = 0
    NVMLError: type[Exception] = field(default=pynvml.NVMLError)

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.init_error
        self.running += 1

    def nvmlShutdown(self) -> None:
        self.running -= 1

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlDeviceGetCount": self.count,
            "nvmlDeviceGetHandleByIndex": None,
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
            "nvmlDeviceGetUUID": "GPU-12345678",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:C1:00.0"),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, free=23 * GIB),
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetMaxPcieLinkGeneration": 4,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetEnforcedPowerLimit": 450_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.throttle_reasons,
        }
        if name not in answers:
            raise AttributeError(name)

        def function(*arguments: Any) -> Any:
            if name in self.failing:
                raise unsupported()
            return arguments[0] + 1 if name == "nvmlDeviceGetHandleByIndex" else answers[name]

        return function


NO_DRIVER = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
