"""Finds out what this machine is, and measures what the finding alone does not tell."""

import ctypes
import platform
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pynvml

from moetune.hardware.cgroups import read_cgroup_limits
from moetune.hardware.compute import measure_compute
from moetune.hardware.cpu import read_cpu
from moetune.hardware.devices import device_handle, read_devices
from moetune.hardware.disk import measure_disk, read_disk
from moetune.hardware.ggml import load_ggml
from moetune.hardware.links import EXPERT_BYTES, measure_link
from moetune.hardware.machine import NOT_MEASURED, Link, Machine, Missing, Software
from moetune.hardware.memory import measure_memory, read_memory
from moetune.hardware.nvidia import Nvml, read_gpus


def probe(
    model_path: Path | None = None,
    measure: bool = True,
    expert_bytes: int = EXPERT_BYTES,
    nvml: Nvml = pynvml,
) -> Machine:
    """This machine, now.

    ``model_path`` names the file whose disk matters; ``expert_bytes`` is the size of one expert of the model, at
    which links are timed beside the bulk size. Devices that a plugin brings must be in llama.cpp's registry before.
    Raises ``MoetuneError`` where llama.cpp cannot be loaded; whatever else is not to be had is None with a reason.
    """
    machine = read_machine(model_path, nvml)
    return measure_machine(machine, model_path, expert_bytes) if measure else machine


def read_machine(model_path: Path | None = None, nvml: Nvml = pynvml) -> Machine:
    """Everything that needs no timing."""
    library = load_ggml()
    limits = read_cgroup_limits()
    cpu = read_cpu(limits)
    gpus = read_gpus(nvml)
    missing = []
    if gpus.reason:
        missing.append(Missing("gpus", gpus.reason))
    if model_path is None:
        missing.append(Missing("disk", "no model given"))
    devices = read_devices(library)
    if any(device.has_link for device in devices):
        missing.append(Missing("links", NOT_MEASURED))
    else:
        missing.append(Missing("links", "no device with memory of its own"))
    return Machine(
        cpu=cpu,
        memory=read_memory(limits, cpu.usable_cores),
        devices=devices,
        gpus=gpus.found,
        links=(),
        disk=read_disk(model_path) if model_path else None,
        software=_read_software(library),
        probed_at=_now(),
        measured_at=None,
        missing=tuple(missing),
    )


def measure_machine(machine: Machine, model_path: Path | None, expert_bytes: int = EXPERT_BYTES) -> Machine:
    """``machine`` with RAM, links and disk timed: about a second each, and two for each device."""
    links = measure_links(machine, expert_bytes)
    return replace(
        machine,
        memory=measure_memory(machine.memory, machine.cpu),
        links=links,
        compute=measure_compute(load_ggml(), machine.devices, machine.cpu.usable_cores),
        disk=measure_disk(machine.disk, model_path) if machine.disk and model_path else machine.disk,
        measured_at=_now(),
        missing=without(machine.missing, "links") if links else machine.missing,
    )


def measure_links(machine: Machine, expert_bytes: int) -> tuple[Link, ...]:
    """A link for each device that data must travel to, in registry order."""
    library = load_ggml()
    return tuple(
        measure_link(library, device_handle(library, index), device, expert_bytes)
        for index, device in enumerate(machine.devices)
        if device.has_link
    )


def without(missing: tuple[Missing, ...], field: str) -> tuple[Missing, ...]:
    """``missing`` less the entry for a field that is there after all."""
    return tuple(m for m in missing if m.field != field)


def _read_software(library: ctypes.CDLL) -> Software:
    return Software(
        os=_os_name(),
        kernel=platform.release(),
        llama_cpp_python_version=metadata.version("llama-cpp-python"),
        ggml_version=library.ggml_version().decode(),
        ggml_commit=library.ggml_commit().decode(),
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
