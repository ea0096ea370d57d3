"""What devices compute, timed on this computer's own CPU."""

from hardware_samples import bandwidth, machine

from moetune.hardware.compute import measure_compute
from moetune.hardware.devices import read_devices
from moetune.hardware.ggml import load_ggml
from moetune.hardware.machine import Compute, DeviceKind, GgmlDevice, Machine, Missing
from moetune.hardware.render import machine_table


def test_the_cpu_is_timed_in_every_respect() -> None:
    """It has threads to set, multiplies experts and batches, and every operation takes some time."""
    library = load_ggml()
    devices = read_devices(library)
    found = measure_compute(library, devices, threads=1, budget_s=0.2)
    cpu = next(c for c in found if _kind(devices, c.device) is DeviceKind.CPU)
    assert cpu.experts is not None
    assert cpu.experts_1_thread is not None
    assert 0.01 < cpu.experts.gbps < 1000
    assert cpu.batch_gflops is not None
    assert 0.1 < cpu.batch_gflops < 1e5
    assert cpu.node_s is not None
    assert 0 < cpu.node_s < 0.1
    assert cpu.missing == ()


def test_figures_and_gaps_are_shown_in_80_columns_and_survive_writing() -> None:
    """A device that cannot be timed has dashes, not zeros."""
    fast = Compute("CUDA0", False, 1, bandwidth(850), None, 60_000.0, 2.5e-6, 4e-5, ())
    slow = Compute("EMUHOST", True, 2, bandwidth(0.15), bandwidth(0.15), None, None, None, (Missing("node_s", "no"),))
    shown = machine(compute=(fast, slow))
    table = machine_table(shown)
    assert max(len(line) for line in table.splitlines()) <= 80
    section = table.split("\nCompute\n")[1].split("\n\n")[0]
    assert "60000 Gop/s" in section
    assert "2.5 us" in section
    assert "–" in section
    assert Machine.from_dict(shown.to_dict()) == shown


def _kind(devices: tuple[GgmlDevice, ...], name: str) -> DeviceKind:
    return next(device.kind for device in devices if device.name == name)
