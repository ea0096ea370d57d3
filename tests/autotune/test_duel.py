"""The side-by-side: interleaved, and noise does not win it."""

import math
import random
from collections.abc import Callable

import pytest

from moetune.autotune.duel import Duel, fight, interval_of
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import Failed, FailureReason, Measurement

BASE = EngineConfig(n_ctx=512, n_threads=4)
RIVAL = EngineConfig(n_ctx=512, n_threads=4, cache=CacheKnobs(slots=8))
DUELS = 400


def measured(seconds: float) -> Measurement:
    return Measurement(64, (seconds,), (seconds,) * 4, 0, 0, None, 0.0)


def run(measure: Callable[[EngineConfig], Measurement | Failed], comparisons: int = 1) -> Duel:
    return fight(
        "stock",
        BASE,
        RIVAL,
        measure=measure,
        turn_s=lambda m: m.turn_s(64, 4),
        blocks=6,
        margin=0.01,
        comparisons=comparisons,
        progress=lambda done, total: None,
        keep=lambda block: None,
    )


def noisy(seed: int, speed_up: float) -> Callable[[EngineConfig], Measurement]:
    """2 % noise between processes and a machine that drifts by 3 % over the duel."""
    source, calls = random.Random(seed), 0

    def measure(config: EngineConfig) -> Measurement:
        nonlocal calls
        calls += 1
        true_s = 1.0 / speed_up if config == RIVAL else 1.0
        return measured(true_s * math.exp(source.gauss(0, 0.02) + 0.03 * calls / 12))

    return measure


def test_equals_hardly_ever_win() -> None:
    """A/A: in 400 duels of a configuration against its equal, at most 2 % name a winner."""
    assert sum(run(noisy(seed, 1.0)).won for seed in range(DUELS)) <= DUELS * 0.02


def test_two_finalists_do_not_double_the_risk() -> None:
    """With two candidates no better than the baseline, at most 2 % of the searches name either."""
    searches = [any(run(noisy(1000 * k + seed, 1.0), comparisons=2).won for k in (1, 2)) for seed in range(DUELS)]
    assert sum(searches) <= DUELS * 0.02


def test_a_real_gain_is_found() -> None:
    """10 % faster at 2 % noise wins nearly always, and the interval covers the truth as often as it says."""
    duels = [run(noisy(seed, 1.10)) for seed in range(200)]
    assert sum(duel.won for duel in duels) >= 190
    covered = sum(d.interval is not None and d.interval.low <= 1.10 <= d.interval.high for d in duels)
    assert covered >= 180


def test_a_gain_below_the_margin_does_not_win() -> None:
    """Half a percent, measured without any noise, is not worth a change."""
    assert not run(lambda c: measured(0.995 if c == RIVAL else 1.0)).won


def test_the_order_alternates_so_that_drift_cancels() -> None:
    """A B, B A, A B: neighbours of the same kind also share an engine process."""
    order: list[str] = []

    def measure(config: EngineConfig) -> Measurement:
        order.append("B" if config == RIVAL else "A")
        return measured(1.0)

    duel = run(measure)
    assert "".join(order) == "ABBAABBAABBA"
    assert [block.candidate_first for block in duel.blocks] == [False, True] * 3


def test_a_failure_voids_the_duel() -> None:
    """Nothing is concluded from a duel that was not finished."""
    duel = run(lambda c: Failed(FailureReason.CRASHED, "") if c == RIVAL else measured(1.0))
    assert not duel.won
    assert duel.interval is None
    assert duel.failure is not None
    assert "candidate failed" in duel.failure


def test_more_confidence_is_a_wider_interval() -> None:
    """What Bonferroni's correction does."""
    narrow, wide = (interval_of([0.1, 0.12, 0.09, 0.11], level) for level in (0.95, 0.975))
    assert wide.gain == pytest.approx(narrow.gain)
    assert wide.low < narrow.low < narrow.gain < narrow.high < wide.high
