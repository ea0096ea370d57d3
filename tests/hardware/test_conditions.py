"""What counts as a disturbance."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hardware_samples import FakeNvml

from moetune.hardware.conditions import Conditions, GpuConditions, disturbance, read_conditions

GIB = 1 << 30
GPU = GpuConditions(20 * GIB, 24 * GIB, throttled=False)
QUIET = Conditions(0.0, 100.0, 50.0, 8, 4000.0, False, 3, 0, 20 * GIB, 32 * GIB, (GPU,))
LATER = replace(QUIET, at_s=10.0, busy_s=140.0, own_s=90.0)


def test_own_work_is_no_disturbance() -> None:
    """This program may use all the processors it likes."""
    assert disturbance(QUIET, LATER) is None


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (replace(LATER, busy_s=180.0), "other programs took 50% of the processors"),
        (replace(LATER, clock_mhz=3000.0), "clock changed by -25%"),
        (replace(LATER, hot=True), "temperature"),
        (replace(LATER, throttles=4), "processor was slowed down"),
        (replace(LATER, swapped_bytes=1 * GIB), "swapped"),
        (replace(LATER, free_bytes=16 * GIB), "12% of the RAM"),
        (replace(LATER, gpus=(replace(GPU, free_bytes=19 * GIB),)), "1,024 MiB of the GPU's memory"),
        (replace(LATER, gpus=(replace(GPU, throttled=True),)), "GPU was slowed down"),
    ],
)
def test_what_moves_is_named(after: Conditions, words: str) -> None:
    """In words that fit behind "the machine did not keep still"."""
    assert words in (disturbance(QUIET, after) or "")


def test_an_unknown_clock_disturbs_nothing() -> None:
    """Many virtual machines hide it."""
    assert disturbance(replace(QUIET, clock_mhz=None), LATER) is None


def test_this_process_own_work_is_told_from_others() -> None:
    """Half a second of computing here is not foreign load, whatever else runs."""
    before = read_conditions()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        os.getpid()
    after = read_conditions()
    assert after.own_s - before.own_s >= 0.45
    assert after.busy_s - before.busy_s >= 0.4


def test_gpus_are_read_and_slowed_ones_noticed(tmp_path: Path) -> None:
    """Thermal slowdown is one of NVML's reasons; the usual power limit does not count."""
    for reason, throttled in ((0x04, False), (0x20, True)):
        found = read_conditions(FakeNvml(throttle_reasons=reason), tmp_path).gpus
        assert [gpu.throttled for gpu in found] == [throttled]
        assert found[0].total_bytes == 24 * GIB


def test_throttle_counters_are_added_up(tmp_path: Path) -> None:
    """One file a core, in the kernel's tree."""
    for core, count in (("cpu0", 2), ("cpu1", 5)):
        folder = tmp_path / core / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    assert read_conditions(sysfs=tmp_path).throttles == 7
