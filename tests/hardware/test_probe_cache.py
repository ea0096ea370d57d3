"""Measurements are made once a machine, and a damaged memory of them is no disaster."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hardware_samples import NO_DRIVER, FakeNvml, bandwidth, link
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moetune.hardware.cache import ProbeResult, WarningKind, load_or_probe
from moetune.hardware.machine import Machine
from moetune.hardware.nvidia import Nvml


class Measurer:
    """Stands in for the timing, and counts how often it is asked."""

    def __init__(self, gbps: float = 12.5) -> None:
        self.gbps = gbps
        self.asked = 0

    def __call__(self, machine: Machine, model_path: Path | None, expert_bytes: int) -> Machine:
        self.asked += 1
        rate = bandwidth(self.gbps)
        memory = replace(machine.memory, read_1_thread=rate, read_all_threads=rate, missing=())
        disk = replace(machine.disk, read=rate, missing=()) if machine.disk else None
        return replace(machine, memory=memory, links=(link(),), disk=disk, measured_at="2026-01-02T03:04:05+00:00")


def remembered(
    folder: Path, measure: Measurer, model: Path | None = None, nvml: Nvml | None = None, expert_bytes: int = 1 << 20
) -> ProbeResult:
    gpus = nvml or FakeNvml(init_error=NO_DRIVER)
    return load_or_probe(folder, model, expert_bytes, nvml=gpus, measure=measure)


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_second_search_measures_nothing(tmp_path: Path) -> None:
    """The rates come back as they were, with the time at which they were measured."""
    measure = Measurer()
    first = remembered(tmp_path / "probe", measure)
    second = remembered(tmp_path / "probe", measure)
    assert (first.from_cache, second.from_cache, measure.asked) == (False, True, 1)
    assert second.machine.memory.read_1_thread == first.machine.memory.read_1_thread
    assert second.machine.links == first.machine.links
    assert second.machine.measured_at == first.machine.measured_at
    assert second.warnings == ()


def test_file_is_named_by_the_fingerprint(tmp_path: Path) -> None:
    """So that machines sharing a home directory do not meet, and no half-written file stays behind."""
    result = remembered(tmp_path, Measurer())
    assert the_file(tmp_path).name == f"{result.machine.fingerprint}.yaml"


def test_sizes_are_todays_and_not_the_remembered_ones(tmp_path: Path) -> None:
    """Free memory decides what fits; yesterday's would be a trap."""
    measure = Measurer()
    remembered(tmp_path, measure)
    path = the_file(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["machine"]["memory"]["available_bytes"] = 12345
    path.write_text(yaml.safe_dump(data))
    result = remembered(tmp_path, measure)
    assert result.from_cache
    assert result.machine.memory.available_bytes != 12345


def test_another_gpu_is_measured_anew(tmp_path: Path) -> None:
    """The fingerprint changes, so the old file is not even opened."""
    measure = Measurer()
    remembered(tmp_path, measure)
    result = remembered(tmp_path, measure, nvml=FakeNvml(1))
    assert not result.from_cache
    assert measure.asked == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_another_expert_size_is_measured_anew(tmp_path: Path) -> None:
    """A link's rate at one expert size says little about another."""
    measure = Measurer()
    remembered(tmp_path, measure, expert_bytes=1 << 20)
    assert not remembered(tmp_path, measure, expert_bytes=1 << 22).from_cache
    assert remembered(tmp_path, measure, expert_bytes=1 << 22).from_cache


def test_measuring_can_be_asked_for(tmp_path: Path) -> None:
    """And what was measured then replaces what was remembered."""
    remembered(tmp_path, Measurer(10.0))
    again = load_or_probe(
        tmp_path, None, 1 << 20, remeasure=True, nvml=FakeNvml(init_error=NO_DRIVER), measure=Measurer(30.0)
    )
    assert not again.from_cache
    rate = remembered(tmp_path, Measurer()).machine.memory.read_1_thread
    assert rate is not None
    assert rate.gbps == 30.0


def test_disk_that_is_new_is_measured_alone(tmp_path: Path) -> None:
    """A first search without a model leaves only the disk to be timed in the next."""
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(1 << 20))
    measure = Measurer()
    remembered(tmp_path / "probe", measure)
    second = remembered(tmp_path / "probe", measure, model)
    third = remembered(tmp_path / "probe", measure, model)
    assert measure.asked == 1
    assert second.machine.disk is not None
    assert second.machine.disk.read is not None
    assert (second.from_cache, third.from_cache) == (False, True)
    assert third.machine.disk is not None
    assert third.machine.disk.read == second.machine.disk.read


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.floats(0, 1), put=st.binary(max_size=30), cut=st.booleans())
@example(at=0.0, put=b"", cut=True)
@example(at=0.0, put=b"\xff\xfe\x00", cut=True)
@example(at=0.0, put=b"when: 2024-99-99\n", cut=True)
@example(at=0.0, put=b"expert_bytes: {{{", cut=True)
def test_damaged_file_never_crashes_the_probe(
    tmp_path_factory: pytest.TempPathFactory, at: float, put: bytes, cut: bool
) -> None:
    """Cut short or overwritten anywhere, it is either still valid or measured again with a warning."""
    folder = tmp_path_factory.mktemp("probe")
    measure = Measurer()
    remembered(folder, measure)
    path = the_file(folder)
    whole = path.read_bytes()
    place = int(at * len(whole))
    path.write_bytes(whole[:place] + put + (b"" if cut else whole[place + len(put) :]))
    result = remembered(folder, measure)
    assert result.machine.memory.read_1_thread is not None
    assert result.from_cache or [w.kind for w in result.warnings] == [WarningKind.CACHE_CORRUPT]


@pytest.mark.parametrize("text", ["", "[1, 2]", "machine: 3", "machine: {schema: 1}", "\t:"])
def test_corrupt_file_is_replaced_and_reported(tmp_path: Path, text: str) -> None:
    """The warning names the file; the next search finds a good one."""
    measure = Measurer()
    remembered(tmp_path, measure)
    the_file(tmp_path).write_text(text)
    result = remembered(tmp_path, measure)
    assert [w.kind for w in result.warnings] == [WarningKind.CACHE_CORRUPT]
    assert str(the_file(tmp_path)) in result.warnings[0].message
    assert not result.from_cache
    assert remembered(tmp_path, measure).from_cache


def test_file_of_another_machine_is_not_believed(tmp_path: Path) -> None:
    """Copied from elsewhere under this machine's name, it would pass every other check."""
    measure = Measurer()
    remembered(tmp_path, measure)
    path = the_file(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["machine"]["cpu"]["model"] = "Another CPU"
    path.write_text(yaml.safe_dump(data))
    result = remembered(tmp_path, measure)
    assert not result.from_cache
    assert "another machine" in result.warnings[0].message


def test_directory_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    """The measurements are there; only the next search pays for them again."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    result = remembered(blocked / "probe", Measurer())
    assert WarningKind.CACHE_UNWRITABLE in [w.kind for w in result.warnings]
    assert result.machine.memory.read_1_thread is not None
