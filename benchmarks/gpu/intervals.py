"""Medians with bootstrap intervals, on the standard library alone."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
LEVEL = 0.95

Pair = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A median over runs with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def show(self, digits: int) -> str:
        """Such as ``31.4 (30.9-31.8)``."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def ratio_of_sums(runs: Sequence[Sequence[Pair]], seed: int = 1) -> Interval:
    """The median over runs of sum(first) / sum(second) over a run's pairs.

    The interval comes from drawing runs with replacement and, in each, pairs with replacement: runs differ by where a
    process happens to lie in memory, pairs by what their tokens route. Raises ValueError without data.
    """
    if not runs or not all(runs):
        raise ValueError("no samples")
    rng = random.Random(seed)
    drawn = sorted(
        statistics.median(_ratio(rng.choices(run, k=len(run))) for run in rng.choices(runs, k=len(runs)))
        for _ in range(RESAMPLES)
    )
    tail = int(RESAMPLES * (1 - LEVEL) / 2)
    return Interval(statistics.median(_ratio(run) for run in runs), drawn[tail], drawn[-1 - tail])


def blocks(first: Sequence[float], second: Sequence[float], size: int = 16) -> list[Pair]:
    """Sums over blocks of neighbours, which are not independent: a miss is followed by a copy, a topic by itself."""
    return [(sum(first[i : i + size]), sum(second[i : i + size])) for i in range(0, len(first), size)]


def _ratio(pairs: Sequence[Pair]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)
