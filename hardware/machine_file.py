"""A machine that is not here, described by hand in a YAML file: what it would be like, and what is assumed of it.

    name: My next desktop
    cpu: {cores: 16}
    ram: {gib: 96, gbps: 89.6}
    gpus:
      - {name: RTX 4090, vram_gib: 24, gbps: 1008, link_gbps: 25}

GB/s are 1e9 bytes a second, as the makers state them, but for the link: there what is attained. Where they are known,
`ram.expert_gbps` is the rate at which experts' weights are read for one token, `ram.gbps_1_thread` what one thread
reads, and `gpus[].tflops` what the card attains with prompts.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from moetune.errors import ExitCode, MoetuneError
from moetune.hardware import assumptions as assumed
from moetune.hardware.machine import (
    Bandwidth,
    Compute,
    Cpu,
    DeviceKind,
    GgmlDevice,
    Link,
    Machine,
    Memory,
    Missing,
    Software,
    Transfers,
)
from moetune.safe_yaml import BadYaml, read_mapping

_MAX_FILE_BYTES = 1 << 16
_GIB = 1 << 30
_BY_HAND = "described by hand"

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Gib = Annotated[float, Field(gt=0, le=1 << 16)]
Gbps = Annotated[float, Field(gt=0, le=1e5)]
Cores = Annotated[int, Field(gt=0, le=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CpuPart(_Part):
    """threads: those that can run at once, the cores' number unless said."""

    cores: Cores
    threads: Cores | None = None


class RamPart(_Part):
    """gbps: of all channels together."""

    gib: Gib
    gbps: Gbps
    gbps_1_thread: Gbps = assumed.CORE_GBPS.value
    expert_gbps: Gbps | None = None


class GpuPart(_Part):
    """One card; a model is planned for one of several."""

    name: Name
    vram_gib: Gib
    gbps: Gbps
    link_gbps: Gbps
    tflops: Annotated[float, Field(gt=0, le=1e4)] | None = None


class DescribedMachine(_Part):
    """The file's content."""

    name: Name = "a machine described by hand"
    cpu: CpuPart
    ram: RamPart
    gpus: Annotated[tuple[GpuPart, ...], Field(max_length=16)] = ()


def read_machine_file(path: Path) -> Machine:
    """The machine in the file at `path`; MoetuneError (USAGE) names what is wrong and where."""
    try:
        data = json.dumps(read_mapping(path, max_bytes=_MAX_FILE_BYTES))
        return machine_of(DescribedMachine.model_validate_json(data))
    except OSError as error:
        raise MoetuneError(
            f"The machine file {path} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it.",
            ExitCode.USAGE,
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise _not_a_machine(path, f"{where}: {first['msg']}") from error
    except BadYaml as error:
        raise _not_a_machine(path, str(error)) from error


def _not_a_machine(path: Path, why: str) -> MoetuneError:
    return MoetuneError(
        f"{path} does not describe a machine: {why}.",
        "It needs cpu: {cores}, ram: {gib, gbps} and, for each GPU, gpus: [{name, vram_gib, gbps, link_gbps}].",
        ExitCode.USAGE,
    )


def machine_of(described: DescribedMachine) -> Machine:
    """The same as a probe would tell it, each figure what is attained of what the maker states."""
    cpu, ram = described.cpu, described.ram
    total = int(ram.gib * _GIB)
    threads = cpu.threads or cpu.cores
    stated = ram.expert_gbps
    host = Compute(
        device="CPU",
        emulated=False,
        threads=threads,
        experts=_rate(stated) if stated else None,
        experts_1_thread=_rate(min(stated, ram.gbps_1_thread)) if stated else None,
        batch_gflops=None,
        node_s=None,
        join_s=None,
        missing=_by_hand("batch_gflops", "node_s", "join_s", *(() if stated else ("experts", "experts_1_thread"))),
    )
    names = [f"GPU{index}" for index in range(len(described.gpus))]
    return Machine(
        cpu=Cpu(described.name, "unknown", cpu.cores, threads, threads, (), None),
        memory=Memory(total, total, 0, 0, _rate(ram.gbps_1_thread), _rate(ram.gbps), threads, ()),
        devices=(
            *(_device(name, gpu) for name, gpu in zip(names, described.gpus, strict=True)),
            GgmlDevice("CPU", described.name, DeviceKind.CPU, total, total, None),
        ),
        gpus=(),
        links=tuple(_link(name, gpu) for name, gpu in zip(names, described.gpus, strict=True)),
        disk=None,
        software=Software("unknown", "unknown", "unknown", "unknown", "unknown"),
        probed_at=_BY_HAND,
        measured_at=None,
        missing=_by_hand("gpus", "disk"),
        compute=(*(_compute(name, gpu) for name, gpu in zip(names, described.gpus, strict=True)), host),
    )


def _device(name: str, gpu: GpuPart) -> GgmlDevice:
    size = int(gpu.vram_gib * _GIB)
    return GgmlDevice(name, gpu.name, DeviceKind.GPU, size, size, None)


def _link(name: str, gpu: GpuPart) -> Link:
    link = _rate(gpu.link_gbps)
    return Link(
        device=name,
        emulated=False,
        bulk=Transfers(1, link, link, link, link),
        expert=None,
        device_memory=_rate(gpu.gbps * assumed.DEVICE_ATTAINED.value),
        # The rate is there; what is missing is its measurement.
        missing=(*_by_hand("expert"), Missing("device_memory", str(assumed.DEVICE_ATTAINED))),
    )


def _compute(name: str, gpu: GpuPart) -> Compute:
    return Compute(
        device=name,
        emulated=False,
        threads=1,
        experts=None,
        experts_1_thread=None,
        batch_gflops=gpu.tflops * 1e3 if gpu.tflops else None,
        node_s=None,
        join_s=None,
        missing=_by_hand("experts", "experts_1_thread", "node_s", "join_s"),
    )


def _rate(gbps: float) -> Bandwidth:
    """A rate that somebody states: one pass over nothing."""
    return Bandwidth(gbps, gbps, gbps, 1, 1)


def _by_hand(*fields: str) -> tuple[Missing, ...]:
    return tuple(Missing(field, _BY_HAND) for field in fields)
