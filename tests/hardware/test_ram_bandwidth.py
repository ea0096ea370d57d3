"""Rates from timed passes, and RAM's."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetune.hardware.cgroups import CgroupLimits, read_cgroup_limits
from moetune.hardware.cpu import read_cpu
from moetune.hardware.machine import reason_for
from moetune.hardware.memory import MIB, buffer_bytes, measure_memory, read_memory
from moetune.hardware.timing import MAX_PASSES, bandwidth_from, measure_rate, stopwatch

NO_LIMITS = CgroupLimits(None, None, None)


class HandClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: list[float]) -> Iterator[float]:
        for each in seconds:
            self.now += each
            yield each


def test_rate_is_the_median_and_keeps_its_spread() -> None:
    """One slow pass moves the minimum, not the figure."""
    rate = bandwidth_from([1.0, 2.0, 10.0], 4_000_000_000)
    assert (rate.gbps, rate.gbps_min, rate.gbps_max, rate.passes) == (2.0, 0.4, 4.0, 3)


def test_warm_up_pass_is_not_counted() -> None:
    """The first pass faults pages in and wakes the device; it would drag the figure down."""
    clock = HandClock()
    times = clock.passes([9.0, 1.0, 1.0, 1.0, 1.0])
    rate = measure_rate(lambda: next(times), 10**9, budget_s=12.0, clock=clock)
    assert (rate.gbps_min, rate.passes) == (1.0, 3)


def test_slow_passes_stop_at_twice_the_budget() -> None:
    """A slow link costs bounded time, even if fewer passes than usual are left to judge by."""
    clock = HandClock()
    times = clock.passes([1.0] * 100)
    assert measure_rate(lambda: next(times), 10**9, budget_s=1.0, clock=clock).passes == 1
    assert clock.now == 2.0


def test_fast_passes_stop_at_the_cap() -> None:
    """Nothing is learnt from the thousandth pass."""
    clock = HandClock()
    times = clock.passes([0.001] * 1000)
    assert measure_rate(lambda: next(times), 10**6, budget_s=100.0, clock=clock).passes == MAX_PASSES


def test_stopwatch_times_the_action_alone() -> None:
    """It returns what the clock moved while the action ran."""
    clock = HandClock()

    def action() -> None:
        clock.now += 2.5

    assert stopwatch(action, clock)() == 2.5


def test_rate_stays_finite_where_the_clock_is_too_coarse() -> None:
    """A pass of zero seconds must not divide by zero."""
    assert bandwidth_from([0.0], 1000).gbps == pytest.approx(1000.0)


@settings(deadline=None)
@given(
    cache=st.one_of(st.none(), st.integers(0, 1 << 34)),
    threads=st.integers(1, 512),
    available=st.integers(0, 1 << 42),
)
def test_buffer_never_takes_more_than_a_quarter_of_free_ram(cache: int | None, threads: int, available: int) -> None:
    """A probe must not push a loaded machine into swap."""
    size = buffer_bytes(cache, threads, available)
    assert size <= available // 4
    assert size <= 2048 * MIB
    if available >= 8192 * MIB:
        assert size >= min(2048 * MIB, max(256 * MIB, 2 * (cache or 0)))


def test_ram_rates_of_this_machine_are_plausible() -> None:
    """Any computer that runs llama.cpp reads between 0.1 and 10,000 GB/s, within its own spread."""
    cpu = read_cpu(NO_LIMITS)
    memory = measure_memory(read_memory(NO_LIMITS, cpu.usable_cores), cpu, budget_s=0.2)
    assert memory.missing == ()
    for rate in (memory.read_1_thread, memory.read_all_threads):
        assert rate is not None
        assert 0.1 < rate.gbps_min <= rate.gbps <= rate.gbps_max < 10_000
        assert rate.bytes_per_pass >= 16 * MIB


def test_ram_is_not_measured_when_hardly_any_is_free() -> None:
    """The reason takes the place of the rate."""
    cpu = read_cpu(NO_LIMITS)
    tight = replace(read_memory(NO_LIMITS, 1), available_bytes=32 * MIB)
    memory = measure_memory(tight, cpu)
    assert memory.read_1_thread is None
    assert reason_for(memory.missing, "read_1_thread") == "only 32 MiB of RAM available"


@pytest.mark.parametrize(("used", "available"), [(1 << 30, (1 << 31) - (1 << 30)), (1 << 32, 0)])
def test_memory_limit_of_the_group_replaces_the_machines_size(used: int, available: int) -> None:
    """In a container the model must fit what the container may use."""
    memory = read_memory(CgroupLimits(None, 1 << 31, used), 1)
    assert memory.total_bytes == 1 << 31
    assert memory.available_bytes == min(available, read_memory(NO_LIMITS, 1).available_bytes)


def test_limits_of_this_process_can_be_read() -> None:
    """On whatever system the tests run, the answer is a limit or None, never an error."""
    limits = read_cgroup_limits()
    assert limits.cores is None or limits.cores > 0
    assert limits.memory_bytes is None or limits.memory_bytes > 0
