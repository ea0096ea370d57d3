"""The fingerprint: the same tomorrow, another for another machine."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hardware_samples import GIB, MIB, bandwidth, device, emulated_device, gpu, link, machine
from hypothesis import given, settings
from hypothesis import strategies as st

from moetune.hardware.machine import DeviceKind, GgmlDevice, Machine, Missing, Software

sizes = st.integers(0, 1 << 45)


def test_fingerprint_is_sixteen_hex_digits() -> None:
    """It serves as a file name."""
    assert re.fullmatch("[0-9a-f]{16}", machine().fingerprint)


def test_fingerprint_of_a_known_machine_does_not_change() -> None:
    """A golden: another value would orphan every profile and measurement that users have kept."""
    assert machine().fingerprint == "0a33023b53dbba2d"


@settings(deadline=None)
@given(free=sizes, vram_free=sizes, gbps=st.floats(0.001, 1e4), gen=st.integers(1, 6), seconds=st.integers(0, 59))
def test_fingerprint_ignores_what_changes_by_the_hour(
    free: int, vram_free: int, gbps: float, gen: int, seconds: int
) -> None:
    """Free memory, measured rates, the disk, times, kernels and the PCIe link's state are not identity."""
    now = machine()
    later = replace(
        now,
        memory=replace(
            now.memory,
            available_bytes=free,
            swap_total_bytes=free,
            read_1_thread=bandwidth(gbps),
            read_all_threads=None,
            missing=(Missing("read_all_threads", "not measured"),),
        ),
        devices=tuple(replace(d, memory_free_bytes=vram_free) for d in now.devices),
        gpus=tuple(
            replace(g, vram_free_bytes=vram_free, pcie_gen_now=gen, pcie_width_now=gen, power_limit_w=gbps)
            for g in now.gpus
        ),
        links=(link(gbps=gbps),) if gen % 2 else (),
        disk=None,
        software=Software("another", "7.0", "0.4.0", "1.0", "abc"),
        probed_at=f"2027-01-01T00:00:{seconds:02}+00:00",
        measured_at=None,
    )
    assert later.fingerprint == now.fingerprint
    assert later.label == now.label


@settings(deadline=None)
@given(lost=st.integers(0, 900 * MIB))
def test_fingerprint_survives_the_kernels_changing_share_of_ram(lost: int) -> None:
    """Kernel and firmware keep a varying part of an installed 64 GiB, also where ggml reports it as the CPU's."""

    def with_ram(total: int) -> Machine:
        cpu = GgmlDevice("CPU", "AMD", DeviceKind.CPU, total, 0, None)
        return machine(memory=replace(machine().memory, total_bytes=total), devices=(cpu,))

    assert with_ram(64 * GIB - lost).fingerprint == with_ram(64 * GIB).fingerprint


def _cpu(**changes: Any) -> Machine:
    return machine(cpu=replace(machine().cpu, **changes))


@pytest.mark.parametrize(
    "other",
    [
        _cpu(model="AMD EPYC 9654"),
        _cpu(physical_cores=8),
        _cpu(logical_cores=16),
        _cpu(usable_cores=2),
        _cpu(instruction_sets=("avx", "avx2", "avx512f", "fma")),
        machine(memory=replace(machine().memory, total_bytes=64 * GIB)),
        machine(gpus=()),
        machine(gpus=(gpu(), gpu(1))),
        machine(gpus=(gpu(driver="590.1"),)),
        machine(gpus=(gpu(name="NVIDIA H200"),)),
        machine(gpus=(replace(gpu(), uuid="GPU-ffff"),)),
        machine(gpus=(replace(gpu(), vram_total_bytes=81 * GIB),)),
        machine(devices=()),
        machine(devices=(machine().devices[0], replace(device(), memory_total_bytes=80 * GIB + MIB))),
        machine(devices=(machine().devices[0], replace(device(), name="Vulkan0"))),
        machine(devices=(*machine().devices, emulated_device())),
        machine(devices=(*machine().devices, emulated_device("emulated accelerator (link 4 GB/s)"))),
    ],
)
def test_fingerprint_tells_machines_apart(other: Machine) -> None:
    """Another processor, core limit, memory size, GPU, driver or device is another machine."""
    assert other.fingerprint != machine().fingerprint


def test_emulator_throttles_are_part_of_the_identity() -> None:
    """Two emulated machines differ by the throttles that their descriptions carry."""
    slow = machine(devices=(emulated_device("emulated accelerator (link 0.25 GB/s)"),))
    fast = machine(devices=(emulated_device("emulated accelerator (link 4 GB/s)"),))
    assert slow.fingerprint != fast.fingerprint


@settings(deadline=None)
@given(order=st.permutations(["avx", "avx2", "fma"]))
def test_order_of_instruction_sets_does_not_matter(order: list[str]) -> None:
    """A kernel that lists its flags in another order is the same machine."""
    assert _cpu(instruction_sets=tuple(order)).fingerprint == machine().fingerprint


def test_label_counts_equal_gpus_and_marks_emulated_devices() -> None:
    """What a person reads first says how many GPUs there are and which of them is not real."""
    label = machine(gpus=(gpu(), gpu(1)), devices=(*machine().devices, emulated_device())).label
    assert label == "AMD EPYC 9354, 32 cores, 126 GiB RAM, 2x NVIDIA H100 80GB HBM3, EMU0 (emulated)"


def test_label_names_devices_that_are_not_nvidias() -> None:
    """Without NVML the devices come from llama.cpp's registry."""
    radeon = replace(device("Vulkan0", "AMD Radeon RX 7900"), device_id=None)
    assert machine(gpus=(), devices=(radeon,)).label.endswith("126 GiB RAM, 1x AMD Radeon RX 7900")
