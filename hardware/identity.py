"""What makes a machine this machine: the fingerprint and the label, from stable facts only.

Free memory, measured rates, the disk, times and the PCIe link's present state change by the hour and stay out.
"""

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetune.hardware.machine import GgmlDevice, Machine

GIB = 1 << 30


def identity(machine: "Machine") -> dict[str, Any]:
    """The stable facts, as plain values."""
    cpu = machine.cpu
    return {
        "cpu": {
            "model": cpu.model,
            "arch": cpu.arch,
            "physical_cores": cpu.physical_cores,
            "logical_cores": cpu.logical_cores,
            "usable_cores": cpu.usable_cores,
            "instruction_sets": sorted(cpu.instruction_sets),
        },
        "ram_gib": _whole_gib(machine.memory.total_bytes),
        "gpus": [[gpu.name, gpu.uuid, gpu.driver_version, gpu.vram_total_bytes] for gpu in machine.gpus],
        "devices": [[d.name, d.description, str(d.kind), _stable_memory(d)] for d in machine.devices],
    }


def fingerprint(machine: "Machine") -> str:
    """16 hex digits of SHA-256 over the canonical JSON of ``identity``."""
    return _digest(identity(machine))


def kind_fingerprint(machine: "Machine") -> str:
    """The same for every machine built of the same parts: as ``fingerprint``, without the GPUs' serial numbers."""
    facts = identity(machine)
    facts["gpus"] = [[gpu.name, gpu.driver_version, gpu.vram_total_bytes] for gpu in machine.gpus]
    return _digest(facts)


def label(machine: "Machine") -> str:
    """For example ``AMD EPYC, 2 cores, 24 GiB RAM, 1x NVIDIA H100 80GB``."""
    cores = machine.cpu.usable_cores
    parts = [
        machine.cpu.model,
        f"{cores} core{'s' if cores != 1 else ''}",
        f"{_whole_gib(machine.memory.total_bytes)} GiB RAM",
    ]
    if machine.gpus:
        names = Counter(gpu.name or "unnamed NVIDIA GPU" for gpu in machine.gpus)
    else:
        names = Counter(d.description for d in machine.devices if d.has_link and not d.emulated)
    parts += [f"{count}x {name}" for name, count in names.items()]
    parts += [f"{d.name} (emulated)" for d in machine.devices if d.has_link and d.emulated]
    return ", ".join(parts)


def _digest(facts: dict[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _stable_memory(device: "GgmlDevice") -> list[int | str]:
    # Devices that share RAM report the kernel's MemTotal, which moves by megabytes with a kernel update.
    if device.kind == "gpu":
        return [device.memory_total_bytes, "B"]
    return [_whole_gib(device.memory_total_bytes), "GiB"]


def _whole_gib(size_bytes: int) -> int:
    # Upwards: the kernel and the firmware keep some of what is installed, and how much they keep changes.
    return -(-size_bytes // GIB)
