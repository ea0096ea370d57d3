"""Machines described by hand."""

from pathlib import Path

import pytest

from moetune.errors import ExitCode, MoetuneError
from moetune.hardware import assumptions
from moetune.hardware.machine import DeviceKind, Machine
from moetune.hardware.machine_file import read_machine_file

GOOD = """\
name: My next desktop
cpu: {cores: 16}
ram: {gib: 96, gbps: 89.6}
gpus:
  - {name: RTX 4090, vram_gib: 24, gbps: 1008, link_gbps: 25}
  - {name: RTX 3060, vram_gib: 12, gbps: 360, link_gbps: 12, tflops: 20}
"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = tmp_path / "machine.yaml"
    path.write_text(GOOD)
    return path


def test_a_file_is_a_machine_like_any_other(described: Path) -> None:
    """Devices, links and memory are where a probe puts them, and it can be written and read again."""
    machine = read_machine_file(described)
    assert [(d.name, d.kind) for d in machine.devices] == [
        ("GPU0", DeviceKind.GPU),
        ("GPU1", DeviceKind.GPU),
        ("CPU", DeviceKind.CPU),
    ]
    assert machine.devices[0].memory_total_bytes == 24 << 30
    assert machine.memory.total_bytes == 96 << 30
    assert machine.cpu.usable_cores == 16
    assert Machine.from_dict(machine.to_dict()) == machine


def test_what_a_maker_states_is_not_taken_for_what_is_attained(described: Path) -> None:
    """The device's memory is read at a share of its bandwidth, and the machine says which was assumed."""
    link = read_machine_file(described).links[0]
    assert link.device_memory is not None
    assert link.device_memory.gbps == pytest.approx(1008 * assumptions.DEVICE_ATTAINED.value)
    assert any(str(assumptions.DEVICE_ATTAINED) == missing.reason for missing in link.missing)


def test_a_machine_without_a_gpu_is_one_too(tmp_path: Path) -> None:
    """Only CPU and RAM are needed."""
    path = tmp_path / "m.yaml"
    path.write_text("cpu: {cores: 4}\nram: {gib: 16, gbps: 40, expert_gbps: 25}\n")
    machine = read_machine_file(path)
    assert machine.links == ()
    cpu = machine.compute[-1]
    assert cpu.experts is not None
    assert cpu.experts.gbps == 25


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not a mapping"),
        ("cpu: {cores: 4}", "ram"),
        ("cpu: {cores: 0}\nram: {gib: 1, gbps: 1}", "cpu.cores"),
        ("cpu: {cores: four}\nram: {gib: 1, gbps: 1}", "cpu.cores"),
        ("cpu: {cores: 4}\nram: {gib: -1, gbps: 1}", "ram.gib"),
        ("cpu: {cores: 4}\nram: {gib: 1, gbps: .inf}", "not plain YAML"),
        ("cpu: {cores: 4, ghz: 5}\nram: {gib: 1, gbps: 1}", "cpu.ghz"),
        (GOOD.replace("vram_gib: 24, ", ""), "gpus.0.vram_gib"),
        (GOOD + "gpus: []\n", "twice"),
        ("a: &a [1]\ncpu: *a\nram: *a", "aliases"),
        ("cpu: {cores: 4}\nram: {gib: 1, gbps: 1}\nname: " + "x" * 65, "name"),
        ("cpu: {cores: 4}\nram: {gib: 1, gbps: 1}\n#" + "x" * (1 << 16), "larger than"),
        ("cpu: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A clear error with a remedy, whatever the file holds."""
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(MoetuneError) as refused:
        read_machine_file(path)
    assert refused.value.code is ExitCode.USAGE
    assert named in refused.value.cause
    assert "cores" in refused.value.remedy


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """And not taken for an empty machine."""
    with pytest.raises(MoetuneError, match=r"none\.yaml"):
        read_machine_file(tmp_path / "none.yaml")
