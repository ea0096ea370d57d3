"""The machine as data: what is there, what was measured, and why a figure is missing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.identity import fingerprint, kind_fingerprint, label

SCHEMA = 2
NOT_MEASURED = "not measured"
_DERIVED = frozenset({"schema", "fingerprint", "label", "emulated"})

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DeviceKind(StrEnum):
    """ggml's device types, in the order of its enum."""

    CPU = "cpu"
    GPU = "gpu"
    IGPU = "igpu"
    ACCEL = "accel"
    META = "meta"


class ReadMethod(StrEnum):
    """How a disk was read: past the page cache, or through it after asking the kernel to drop the pages."""

    DIRECT = "direct"
    BUFFERED = "buffered"


@dataclass(frozen=True)
class Missing:
    """Why a field is None or empty."""

    field: str
    reason: str


def reason_for(missing: Iterable[Missing], field: str) -> str | None:
    """The reason given for ``field``, or None where there is none."""
    return next((m.reason for m in missing if m.field == field), None)


@dataclass(frozen=True)
class Bandwidth:
    """A measured rate over repeated passes; GB/s are 1e9 bytes a second, ``gbps`` is the median."""

    gbps: Rate
    gbps_min: Rate
    gbps_max: Rate
    passes: Positive
    bytes_per_pass: Positive


@dataclass(frozen=True)
class Cpu:
    """``usable_cores`` are what affinity and control groups leave to this process."""

    model: str
    arch: str
    physical_cores: Positive
    logical_cores: Positive
    usable_cores: Positive
    instruction_sets: tuple[str, ...]
    last_level_cache_bytes: Count | None


@dataclass(frozen=True)
class Memory:
    """RAM and swap; ``total_bytes`` and ``available_bytes`` respect the control group's limit."""

    total_bytes: Positive
    available_bytes: Count
    swap_total_bytes: Count
    swap_free_bytes: Count
    read_1_thread: Bandwidth | None
    read_all_threads: Bandwidth | None
    threads: Positive
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class GgmlDevice:
    """A device in llama.cpp's registry; an ACCEL device without memory of its own reports 0 bytes."""

    name: str
    description: str
    kind: DeviceKind
    memory_total_bytes: Count
    memory_free_bytes: Count
    device_id: str | None

    @property
    def emulated(self) -> bool:
        return "emulated" in self.description.lower()

    @property
    def has_link(self) -> bool:
        """Whether data must travel to it: CPU and ACCEL devices compute in RAM, a META device only wraps others."""
        return self.kind in (DeviceKind.GPU, DeviceKind.IGPU)


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU as NVML sees it; a field NVML refused is None and its reason is in ``missing``."""

    index: Count
    name: str | None
    uuid: str | None
    pci_bus_id: str | None
    driver_version: str | None
    vram_total_bytes: Count | None
    vram_free_bytes: Count | None
    pcie_gen_now: Count | None
    pcie_gen_max: Count | None
    pcie_width_now: Count | None
    pcie_width_max: Count | None
    compute_capability: str | None
    power_limit_w: float | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Transfers:
    """Host to device (h2d) and back (d2h) at one transfer size, from pinned and from pageable host memory."""

    size_bytes: Positive
    h2d_pinned: Bandwidth | None
    h2d_pageable: Bandwidth | None
    d2h_pinned: Bandwidth | None
    d2h_pageable: Bandwidth | None


@dataclass(frozen=True)
class Link:
    """The way between RAM and one device, and how fast the device reads its own memory."""

    device: str
    emulated: bool
    bulk: Transfers | None
    expert: Transfers | None
    device_memory: Bandwidth | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Compute:
    """How fast one device computes what an evaluation of a model consists of, with ``threads`` where it has threads.

    experts, experts_1_thread: Q4_0 weights read by the products of one token with its experts; the second only where
    threads can be set. batch_gflops: 1e9 operations a second, experts with a batch. node_s: seconds a further tiny
    operation of a graph adds. join_s: seconds to fetch a result, send one and have a tiny graph computed.
    """

    device: str
    emulated: bool
    threads: Positive
    experts: Bandwidth | None
    experts_1_thread: Bandwidth | None
    batch_gflops: Rate | None
    node_s: Rate | None
    join_s: Rate | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Disk:
    """The file system that holds the model."""

    mount_point: str
    fs_type: str
    device: str
    free_bytes: Count
    read: Bandwidth | None
    read_method: ReadMethod | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Software:
    """What runs on the machine and can change a measurement without changing the hardware."""

    os: str
    kernel: str
    llama_cpp_python_version: str
    ggml_version: str
    ggml_commit: str


@dataclass(frozen=True)
class Machine:
    """One machine at one time; times are ISO 8601 in UTC, ``measured_at`` is None when nothing was measured."""

    cpu: Cpu
    memory: Memory
    devices: tuple[GgmlDevice, ...]
    gpus: tuple[NvidiaGpu, ...]
    links: tuple[Link, ...]
    disk: Disk | None
    software: Software
    probed_at: str
    measured_at: str | None
    missing: tuple[Missing, ...]
    compute: tuple[Compute, ...] = ()

    @property
    def emulated(self) -> bool:
        return any(device.emulated for device in self.devices)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what stays the same from day to day; see ``moetune.hardware.identity``."""
        return fingerprint(self)

    @property
    def kind_fingerprint(self) -> str:
        """The same for identical machines, whose measurements may be put together."""
        return kind_fingerprint(self)

    @property
    def label(self) -> str:
        """A short description for people, as stable as the fingerprint."""
        return label(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (JSON and YAML safe), the derived ones included for readers."""
        derived: dict[str, Any] = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "label": self.label,
            "emulated": self.emulated,
        }
        return {**derived, **_MACHINE.dump_python(self, mode="json")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Machine":
        """The inverse of ``to_dict``; raises ``MoetuneError`` on anything that is not a machine of this schema."""
        if data.get("schema") != SCHEMA:
            raise MoetuneError(
                f"The machine description has schema {data.get('schema')!r}; this version reads {SCHEMA}.",
                "Probe the machine again with this version of moetune.",
                ExitCode.STORAGE,
            )
        try:
            return _MACHINE.validate_python({k: v for k, v in data.items() if k not in _DERIVED})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise MoetuneError(
                f"The machine description is not valid at {where or 'its top level'}: {first['msg']}.",
                "Probe the machine again.",
                ExitCode.STORAGE,
            ) from error


_MACHINE = TypeAdapter(Machine)
