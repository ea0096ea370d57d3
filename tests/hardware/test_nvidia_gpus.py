"""GPUs as NVML lists them, with NVML played by a fake."""

from dataclasses import replace
from typing import Any

import pytest
from hardware_samples import GIB, NO_DRIVER, FakeNvml

from moetune.hardware.machine import reason_for
from moetune.hardware.nvidia import read_gpus


@pytest.mark.parametrize("count", [1, 3])
def test_every_gpu_is_read_in_order(count: int) -> None:
    """Each GPU has its index and its figures in the units their names say."""
    found, reason = read_gpus(FakeNvml(count))
    assert [gpu.index for gpu in found] == list(range(count))
    assert reason is None
    gpu = found[-1]
    assert (gpu.name, gpu.uuid, gpu.driver_version) == ("NVIDIA GeForce RTX 4090", "GPU-12345678", "580.65.06")
    assert (gpu.vram_total_bytes, gpu.vram_free_bytes) == (24 * GIB, 23 * GIB)
    assert (gpu.pcie_gen_now, gpu.pcie_gen_max, gpu.pcie_width_now, gpu.pcie_width_max) == (1, 4, 8, 16)
    assert (gpu.compute_capability, gpu.power_limit_w, gpu.missing) == ("8.9", 450.0, ())


def test_bus_id_is_written_as_ggml_writes_it() -> None:
    """The two lists can be joined by the PCI address."""
    assert read_gpus(FakeNvml()).found[0].pci_bus_id == "0000:c1:00.0"


def test_missing_driver_is_a_reason_and_no_gpus() -> None:
    """A machine without the NVIDIA library is an ordinary machine."""
    found, reason = read_gpus(FakeNvml(init_error=NO_DRIVER))
    assert found == ()
    assert reason == "no NVIDIA driver: NVML Shared Library Not Found"


def test_driver_without_gpus_says_so() -> None:
    """A driver that lists nothing is told apart from no driver."""
    assert read_gpus(FakeNvml(0)) == ((), "the NVIDIA driver lists no GPU")


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_w"}),
        ("nvmlDeviceGetCurrPcieLinkGeneration", {"pcie_gen_now"}),
        ("nvmlDeviceGetMaxPcieLinkWidth", {"pcie_width_max"}),
        ("nvmlDeviceGetMemoryInfo", {"vram_total_bytes", "vram_free_bytes"}),
        ("nvmlSystemGetDriverVersion", {"driver_version"}),
    ],
)
def test_refused_query_empties_its_own_field_only(function: str, fields: set[str]) -> None:
    """One error for one field gives None and its reason there, and the rest stands."""
    whole = read_gpus(FakeNvml()).found[0]
    part = read_gpus(FakeNvml(failing=frozenset({function}))).found[0]
    assert {gap.field for gap in part.missing} == fields
    assert all(reason_for(part.missing, name) == "Not Supported" for name in fields)
    emptied: dict[str, Any] = dict.fromkeys(fields)
    assert part == replace(whole, missing=part.missing, **emptied)


def test_unreachable_gpu_is_listed_without_figures() -> None:
    """A lost GPU keeps its place, so that the indices of the others stay right."""
    gpu = read_gpus(FakeNvml(failing=frozenset({"nvmlDeviceGetHandleByIndex"}))).found[0]
    assert gpu.index == 0
    assert gpu.name is None
    assert reason_for(gpu.missing, "vram_total_bytes") == "Not Supported"


@pytest.mark.parametrize("failing", [frozenset(), frozenset({"nvmlDeviceGetCount"})])
def test_nvml_is_shut_down_again(failing: frozenset[str]) -> None:
    """Also after a failure, the library is left as it was found."""
    nvml = FakeNvml(failing=failing)
    read_gpus(nvml)
    assert nvml.running == 0


def test_error_that_is_not_nvmls_escapes() -> None:
    """Only NVML's own errors are data; anything else is a bug and keeps its traceback."""
    nvml = FakeNvml(init_error=None)
    nvml.nvmlInit = lambda: 1 / 0  # type: ignore[assignment,method-assign]
    with pytest.raises(ZeroDivisionError):
        read_gpus(nvml)
