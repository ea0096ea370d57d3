"""Measurements remembered by fingerprint, so that a machine is timed once."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import pynvml
import yaml

from moetune.errors import MoetuneError
from moetune.hardware.disk import measure_disk
from moetune.hardware.links import EXPERT_BYTES
from moetune.hardware.machine import Machine
from moetune.hardware.nvidia import Nvml
from moetune.hardware.probe import measure_machine, read_machine, without

_MOST_MACHINES = 1000


class WarningKind(StrEnum):
    """What went wrong with the remembered measurements."""

    CACHE_CORRUPT = "cache_corrupt"
    CACHE_UNWRITABLE = "cache_unwritable"


@dataclass(frozen=True)
class ProbeWarning:
    """Something that cost time but not the result."""

    kind: WarningKind
    message: str


@dataclass(frozen=True)
class Remembered:
    """A measured machine and the expert size its links were timed at."""

    machine: Machine
    expert_bytes: int


@dataclass(frozen=True)
class ProbeResult:
    """``from_cache`` says that nothing had to be measured."""

    machine: Machine
    from_cache: bool
    warnings: tuple[ProbeWarning, ...]


Measure = Callable[[Machine, Path | None, int], Machine]


def load_or_probe(
    cache_dir: Path,
    model_path: Path | None = None,
    expert_bytes: int = EXPERT_BYTES,
    remeasure: bool = False,
    nvml: Nvml = pynvml,
    measure: Measure = measure_machine,
) -> ProbeResult:
    """The machine as it is now, with the rates that were measured on it before where they still answer the question.

    A file that cannot be read or written is a warning; the machine is measured instead.
    """
    seen = read_machine(model_path, nvml)
    path = cache_dir / f"{seen.fingerprint}.yaml"
    remembered: Remembered | None = None
    warnings: list[ProbeWarning] = []
    if not remeasure:
        try:
            remembered = _load(path, seen.fingerprint)
        except (OSError, ValueError, yaml.YAMLError, MoetuneError) as error:
            what = f"{path} cannot be used ({_first_line(error)}); the machine was measured again."
            warnings.append(ProbeWarning(WarningKind.CACHE_CORRUPT, what))
    if remembered and remembered.expert_bytes == expert_bytes:
        machine = _recall(seen, remembered.machine)
        if machine.disk is None or machine.disk.read or model_path is None:
            return ProbeResult(machine, True, tuple(warnings))
        machine = replace(machine, disk=measure_disk(machine.disk, model_path))
    else:
        machine = measure(seen, model_path, expert_bytes)
    try:
        _save(path, Remembered(machine, expert_bytes))
    except OSError as error:
        what = f"The measurements could not be kept in {cache_dir} ({_first_line(error)}); the next run repeats them."
        warnings.append(ProbeWarning(WarningKind.CACHE_UNWRITABLE, what))
    return ProbeResult(machine, False, tuple(warnings))


def remembered_machines(cache_dir: Path) -> tuple[Machine, ...]:
    """Every measured machine that is remembered, the last one first; files that cannot be used are passed over."""
    found = []
    for path in sorted(cache_dir.glob("*.yaml"))[:_MOST_MACHINES]:
        try:
            remembered = _load(path, path.stem)
        except (OSError, ValueError, yaml.YAMLError, MoetuneError):
            continue
        if remembered is not None:
            found.append(remembered.machine)
    return tuple(sorted(found, key=lambda machine: machine.measured_at or "", reverse=True))


def _recall(seen: Machine, measured: Machine) -> Machine:
    """``seen`` with the rates of ``measured``; sizes and free memory stay those of today."""
    disk = seen.disk
    then = measured.disk
    if disk and then and (disk.mount_point, disk.device) == (then.mount_point, then.device):
        disk = replace(disk, read=then.read, read_method=then.read_method, missing=then.missing)
    return replace(
        seen,
        memory=replace(
            seen.memory,
            read_1_thread=measured.memory.read_1_thread,
            read_all_threads=measured.memory.read_all_threads,
            missing=measured.memory.missing,
        ),
        links=measured.links,
        compute=measured.compute,
        disk=disk,
        measured_at=measured.measured_at,
        missing=without(seen.missing, "links") if measured.links else seen.missing,
    )


def _load(path: Path, fingerprint: str) -> Remembered | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    data = yaml.safe_load(text)
    if not isinstance(data, dict) or not isinstance(data.get("machine"), dict):
        raise yaml.YAMLError("it holds no machine")
    machine = Machine.from_dict(data["machine"])
    if machine.fingerprint != fingerprint or machine.measured_at is None:
        raise yaml.YAMLError("it describes another machine, or one that was not measured")
    if type(data.get("expert_bytes")) is not int:
        raise yaml.YAMLError("it does not say at which expert size the links were timed")
    return Remembered(machine, data["expert_bytes"])


def _save(path: Path, remembered: Remembered) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"expert_bytes": remembered.expert_bytes, "machine": remembered.machine.to_dict()}
    # Written beside and renamed: a reader sees the old file or the new one, never half of one.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            # Escaped throughout: with allow_unicode PyYAML writes U+0085 bare and reads it back as a space.
            yaml.safe_dump(data, file, sort_keys=False)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
