"""A machine written as JSON or YAML and read again."""

import json
from typing import Any

import pytest
import yaml
from hardware_samples import emulated_device, gpu, link, machine
from hypothesis import given, settings
from hypothesis import strategies as st

from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine, Missing, NvidiaGpu

machines = st.sampled_from(
    [
        machine(),
        machine(gpus=(), links=(), disk=None, measured_at=None),
        machine(devices=(emulated_device(),), links=(link("EMU0", emulated=True),)),
    ]
)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
counts = st.none() | st.integers(0, 1 << 50)
gpus = st.builds(
    NvidiaGpu,
    index=st.integers(0, 15),
    **dict.fromkeys(("name", "uuid", "pci_bus_id", "driver_version", "compute_capability"), st.none() | texts),
    **dict.fromkeys(("vram_total_bytes", "vram_free_bytes", "pcie_gen_now", "pcie_gen_max"), counts),
    **dict.fromkeys(("pcie_width_now", "pcie_width_max"), counts),
    power_limit_w=st.none() | st.floats(0, 2000),
    missing=st.lists(st.builds(Missing, texts, texts), max_size=2).map(tuple),
)


@settings(deadline=None)
@given(machines, gpus)
def test_json_and_yaml_give_the_same_machine_back(whole: Machine, gpu: NvidiaGpu) -> None:
    """Nothing is lost on the way, whatever NVML answered or refused."""
    original = machine(
        cpu=whole.cpu, devices=whole.devices, gpus=(gpu,), links=whole.links, disk=whole.disk, missing=whole.missing
    )
    plain = original.to_dict()
    assert Machine.from_dict(json.loads(json.dumps(plain))) == original
    assert Machine.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == original


def test_readers_find_the_derived_values() -> None:
    """Fingerprint, label and the emulated mark are there for programs that only read the JSON."""
    emulated = machine(devices=(emulated_device(),))
    plain = emulated.to_dict()
    assert plain["fingerprint"] == emulated.fingerprint
    assert plain["label"] == emulated.label
    assert plain["emulated"] is True
    assert machine().to_dict()["emulated"] is False


def test_uuid_is_in_the_data() -> None:
    """It is part of the identity, so whoever compares machines can see it there."""
    assert machine(gpus=(gpu(2),)).to_dict()["gpus"][0]["uuid"] == "GPU-0000-2"


def _without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return data


def _with(data: dict[str, Any], value: object, *path: str) -> dict[str, Any]:
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"schema": 1},
        {"schema": 3},
        _without(machine().to_dict(), "cpu"),
        _without(machine().to_dict(), "memory", "total_bytes"),
        _with(machine().to_dict(), -1, "memory", "available_bytes"),
        _with(machine().to_dict(), 0.0, "memory", "read_1_thread", "gbps"),
        _with(machine().to_dict(), float("nan"), "memory", "read_1_thread", "gbps"),
        _with(machine().to_dict(), "floppy", "disk", "read_method"),
        _with(machine().to_dict(), [{"name": "CUDA0"}], "devices"),
    ],
)
def test_invalid_description_is_refused_with_a_remedy(data: dict[str, Any]) -> None:
    """A damaged or foreign description never becomes a machine."""
    with pytest.raises(MoetuneError) as refused:
        Machine.from_dict(data)
    assert refused.value.code is ExitCode.STORAGE
    assert "robe" in refused.value.remedy
