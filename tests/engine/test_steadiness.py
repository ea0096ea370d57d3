"""When a warm-up is over."""

import random

from moetune.engine.steadiness import WINDOW_TOKENS, Steadiness


def windows_until_steady(speeds: list[float], rates: list[float | None]) -> int | None:
    """Index of the window after which it is steady, None when it never is."""
    steadiness = Steadiness()
    for index, (speed, rate) in enumerate(zip(speeds, rates, strict=True)):
        steadiness.add(WINDOW_TOKENS / speed, rate)
        if steadiness.reached:
            return index
    return None


def test_constant_speed_is_steady_at_once() -> None:
    """After as many windows as a trend needs."""
    assert windows_until_steady([20.0] * 10, [None] * 10) == 3


def test_a_cache_that_still_fills_is_not_steady() -> None:
    """Hit rate and speed rise for ten windows, then stay."""
    rates: list[float | None] = [min(0.8, 0.08 * i) for i in range(20)]
    speeds = [10 + 12.5 * (rate or 0) for rate in rates]
    at = windows_until_steady(speeds, rates)
    assert at is not None
    assert at >= 11


def test_a_rising_hit_rate_counts_even_at_constant_speed() -> None:
    """What the cache gains later is not to be missed."""
    assert windows_until_steady([20.0] * 8, [0.05 * i for i in range(8)]) is None


def test_noise_without_a_trend_is_steady() -> None:
    """A few percent up and down do not keep it warming for ever."""
    source = random.Random(4)
    steady = [windows_until_steady([source.gauss(20, 1) for _ in range(32)], [None] * 32) for _ in range(50)]
    assert all(at is not None and at <= 12 for at in steady)


def test_a_speed_that_keeps_falling_is_never_steady() -> None:
    """A machine that gets slower and slower is not warmed up, and says so."""
    assert windows_until_steady([20 * 0.97**i for i in range(32)], [None] * 32) is None
