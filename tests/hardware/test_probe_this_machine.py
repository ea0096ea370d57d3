"""The whole probe, on whatever machine runs the tests."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hardware_samples import NO_DRIVER, FakeNvml

from moetune.hardware import ggml
from moetune.hardware.machine import Machine, reason_for
from moetune.hardware.probe import probe
from moetune.hardware.render import WIDTH, machine_table


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    model = tmp_path_factory.mktemp("models") / "model.gguf"
    model.write_bytes(bytes(8 << 20))
    return probe(model, expert_bytes=1 << 20)


def test_probe_measures_memory_and_disk(measured: Machine) -> None:
    """One run has every rate that a machine without a GPU can have."""
    assert measured.memory.read_1_thread is not None
    assert measured.memory.read_all_threads is not None
    assert measured.disk is not None
    assert measured.disk.read is not None
    assert len(measured.links) == sum(device.has_link for device in measured.devices)


def test_probe_says_which_llama_cpp_it_saw(measured: Machine) -> None:
    """Figures are not compared across versions."""
    assert measured.software.llama_cpp_python_version.count(".") == 2
    assert measured.software.ggml_version.count(".") == 2
    assert measured.software.ggml_commit


def test_probe_is_dated_in_utc(measured: Machine) -> None:
    """And not in the future."""
    probed = datetime.fromisoformat(measured.probed_at)
    assert probed.utcoffset() is not None
    assert probed <= datetime.now(UTC)


def test_probe_round_trips_and_fits_the_screen(measured: Machine) -> None:
    """What was made up in other tests holds for the real thing."""
    assert Machine.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    assert max(map(len, machine_table(measured).splitlines())) <= WIDTH


def test_same_machine_has_the_same_fingerprint_again(measured: Machine) -> None:
    """Measured or not, with a model or without."""
    assert probe(measure=False).fingerprint == measured.fingerprint


def test_probe_without_measuring_gives_sizes_and_reasons() -> None:
    """Every rate is None, and says that it was not measured."""
    machine = probe(measure=False, nvml=FakeNvml(init_error=NO_DRIVER))
    assert machine.memory.total_bytes > 0
    assert machine.memory.read_1_thread is None
    assert reason_for(machine.memory.missing, "read_1_thread") == "not measured"
    assert machine.measured_at is None
    assert machine.links == ()
    assert reason_for(machine.missing, "links")
    assert reason_for(machine.missing, "disk") == "no model given"
    assert reason_for(machine.missing, "gpus") == "no NVIDIA driver: NVML Shared Library Not Found"


def test_probe_lists_nvidia_gpus_beside_ggmls_devices() -> None:
    """A build of llama.cpp without CUDA sees none of them, which is worth knowing."""
    machine = probe(measure=False, nvml=FakeNvml(3))
    assert len(machine.gpus) == 3
    assert reason_for(machine.missing, "gpus") is None


def test_ggml_is_the_copy_that_llama_cpp_uses(measured: Machine) -> None:
    """A second copy of the library would have a registry of its own, without the plugins that were loaded."""
    maps = Path("/proc/self/maps").read_text()
    loaded = {line.split()[-1] for line in maps.splitlines() if "libggml.so" in line}
    assert len(loaded) == 1
    assert ggml.load_ggml().ggml_backend_dev_count() == len(measured.devices)
