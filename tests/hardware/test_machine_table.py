"""The table that people read."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hardware_samples import NO_DRIVER, FakeNvml, device, emulated_device, gpu, link, machine
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetune.hardware.machine import Disk, GgmlDevice, Machine, Missing, NvidiaGpu
from moetune.hardware.nvidia import read_gpus
from moetune.hardware.render import WIDTH, machine_table, size_text

names = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1, max_size=120)


def with_nvml(nvml: FakeNvml) -> Machine:
    gpus = read_gpus(nvml)
    return machine(gpus=gpus.found, missing=(Missing("gpus", gpus.reason),) if gpus.reason else ())


def assert_fits(table: str) -> None:
    too_wide = [line for line in table.splitlines() if len(line) > WIDTH]
    assert not too_wide


@pytest.mark.parametrize("count", [0, 1, 3])
def test_table_fits_eighty_columns_for_any_number_of_gpus(count: int) -> None:
    """No GPU, one, and three."""
    table = machine_table(with_nvml(FakeNvml(count)))
    assert_fits(table)
    assert table.count("NVIDIA GeForce RTX 4090") >= count
    assert ("lists no GPU" in table) == (count == 0)


@settings(deadline=None)
@given(name=names, gbps=st.floats(1e-6, 1e5))
def test_table_fits_eighty_columns_with_long_names_and_any_rate(name: str, gbps: float) -> None:
    """Names are wrapped, also those without a space to wrap at."""
    whole = machine()
    table = machine_table(
        replace(
            whole,
            cpu=replace(whole.cpu, model=name),
            devices=(device(name, name), emulated_device("emulated " + name)),
            gpus=(gpu(name=name, driver=name),),
            links=(link(name, gbps=gbps), link(name, emulated=True, gbps=gbps)),
            disk=Disk(name, name, name, 1, None, None, (Missing("read", name),)),
            software=replace(whole.software, os=name, ggml_commit=name),
            missing=(Missing("links", name),),
        )
    )
    assert_fits(table)


def test_gaps_show_a_dash_and_the_reason() -> None:
    """Nothing is left out in silence."""
    table = machine_table(
        machine(
            gpus=read_gpus(FakeNvml(init_error=NO_DRIVER)).found,
            links=(),
            disk=None,
            missing=(
                Missing("gpus", "no NVIDIA driver"),
                Missing("links", "no device with memory of its own"),
                Missing("disk", "no model given"),
            ),
        )
    )
    for reason in ("no NVIDIA driver", "no device with memory of its own", "no model given"):
        assert f"– ({reason})" in table


@pytest.mark.parametrize(
    "missing", [field.name for field in fields(NvidiaGpu) if field.name not in ("index", "missing")]
)
def test_refused_gpu_field_never_shows_as_a_figure(missing: str) -> None:
    """None and 0 do not appear where NVML refused an answer."""
    empty: dict[str, Any] = {missing: None}
    part = replace(gpu(), missing=(Missing(missing, "Not Supported"),), **empty)
    table = machine_table(machine(gpus=(part,)))
    assert "None" not in table
    assert ("– (Not Supported)" in table) == (missing not in ("uuid", "pci_bus_id"))


def test_uuid_stays_out_of_the_table() -> None:
    """A table is pasted into bug reports; the identity of a user's GPU is not for that."""
    assert "GPU-0000" not in machine_table(machine())


def test_every_figure_of_an_emulated_device_is_marked() -> None:
    """A line of the table says that it is emulated even when it is quoted alone."""
    table = machine_table(machine(devices=(emulated_device(),), gpus=(), links=(link("EMU0", emulated=True),)))
    section = table.split("Links\n")[1].split("\n\n")[0].splitlines()
    assert section[0].startswith("EMU0, emulated")
    figures = [line for line in section if "GB/s" in line]
    assert len(figures) == 3
    assert all(line.endswith("emulated") for line in figures)
    assert "gpu, emulated" in table
    assert "EMU0 (emulated)" in table


def test_real_machine_is_not_marked_emulated() -> None:
    """The mark means something."""
    assert "emulated" not in machine_table(machine())


def test_device_without_memory_of_its_own_says_so() -> None:
    """Zero bytes would read as a broken device."""
    host = GgmlDevice("BLAS", "OpenBLAS", device().kind, 0, 0, None)
    assert "uses RAM" in machine_table(machine(devices=(host,)))


def test_name_that_looks_like_a_number_stays_as_it_is() -> None:
    """A device called 1e5 is not 100000."""
    assert "1e5 " in machine_table(machine(devices=(device("1e5", "007"),)))


@given(gbps=st.floats(1e-6, 1e5), length=st.integers(1, 60))
@example(gbps=0.3125, length=11)
@settings(deadline=None)
def test_link_table_fits_for_every_length_of_name(gbps: float, length: int) -> None:
    """The device's name heads the column, and the mark of the emulator comes on top."""
    assert_fits(machine_table(machine(links=(link("0" * length, emulated=True, gbps=gbps),))))


def test_unmeasured_link_gives_its_reason_once() -> None:
    """A device with no room shows why, in words, and no rates."""
    reason = "only 0 B of device memory are free"
    gaps = tuple(Missing(field, reason) for field in ("bulk", "expert", "device_memory"))
    table = machine_table(machine(links=(replace(link(), bulk=None, expert=None, device_memory=None, missing=gaps),)))
    assert table.count(reason) == 1
    assert_fits(table)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (4 << 20, "4 MiB"), (24 << 30, "24 GiB"), (3 << 41, "6.0 TiB")],
)
def test_sizes_are_written_in_binary_units(size: int, text: str) -> None:
    """The unit is always there, and a whole number has no decimals up to GiB."""
    assert size_text(size) == text
