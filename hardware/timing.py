"""Turns timed passes over a known number of bytes into a rate with its spread."""

import statistics
import time
from collections.abc import Callable

from moetune.hardware.machine import Bandwidth

Clock = Callable[[], float]

MIN_PASSES = 3
MAX_PASSES = 60


def stopwatch(action: Callable[[], object], clock: Clock = time.perf_counter) -> Callable[[], float]:
    """Wraps ``action`` into a pass that returns the seconds it took."""

    def timed_pass() -> float:
        start = clock()
        action()
        return clock() - start

    return timed_pass


def measure_rate(
    timed_pass: Callable[[], float], bytes_per_pass: int, budget_s: float, clock: Clock = time.perf_counter
) -> Bandwidth:
    """Repeats ``timed_pass`` (returns seconds) for about ``budget_s`` seconds; the first pass warms up and is dropped.

    At least ``MIN_PASSES`` are kept unless they alone would take twice the budget; one is always kept.
    """
    start = clock()
    timed_pass()
    seconds: list[float] = []
    while len(seconds) < MAX_PASSES:
        elapsed = clock() - start
        if seconds and elapsed >= (budget_s if len(seconds) >= MIN_PASSES else 2 * budget_s):
            break
        seconds.append(timed_pass())
    return bandwidth_from(seconds, bytes_per_pass)


def bandwidth_from(seconds: list[float], bytes_per_pass: int) -> Bandwidth:
    """The rate of each pass in GB/s (1e9 bytes), reduced to the median, minimum and maximum."""
    # A clock too coarse to see a pass must not become an infinite rate.
    rates = [bytes_per_pass / max(s, 1e-9) / 1e9 for s in seconds]
    return Bandwidth(
        gbps=statistics.median(rates),
        gbps_min=min(rates),
        gbps_max=max(rates),
        passes=len(rates),
        bytes_per_pass=bytes_per_pass,
    )
