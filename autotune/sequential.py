"""An interval for a mean that stays true however often one looks at it, and whenever one stops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import mean, stdev

# Prior variance of the standardised effect (mean ÷ standard deviation). It moves power between few and many
# observations and has no part in validity; 10 is narrowest for effects that show after 4 to 16 of them.
_EFFECT_VARIANCE = 10.0
FEWEST = 3


@dataclass(frozen=True)
class Interval:
    """A ratio, times as fast, and what it lies between with `confidence`."""

    gain: float
    low: float
    high: float
    confidence: float


def half_width(deviation: float, n: int, alpha: float) -> float:
    """Half the width of the interval after `n` observations with this standard deviation; may be infinite.

    Where the Bayes factor of the one-sample t-test, with a normal prior on the standardised effect and the invariant
    prior on the deviation, reaches 1 ÷ alpha. It is a test martingale for normal observations of any deviation, so by
    Ville's inequality the truth leaves the interval at any time with probability alpha at most (Rouder et al. 2009,
    equation 7 for the factor; Pérez-Ortiz et al. 2024, "E-statistics, group invariance and anytime-valid testing").
    """
    spread = 1 + n * _EFFECT_VARIANCE
    needed = (math.sqrt(spread) / alpha) ** (2 / n)
    if n < FEWEST or needed >= spread:
        return math.inf
    t_squared = (n - 1) * (needed - 1) / (1 - needed / spread)
    return deviation * math.sqrt(t_squared / n)


def bounds(observations: Sequence[float], alpha: float) -> tuple[float, float]:
    """All intervals so far hold together, so what is left is what none of them excludes."""
    low, high = -math.inf, math.inf
    for n in range(FEWEST, len(observations) + 1):
        seen = observations[:n]
        half = half_width(stdev(seen), n, alpha)
        low, high = max(low, mean(seen) - half), min(high, mean(seen) + half)
    return low, high


def interval_of(log_ratios: Sequence[float], alpha: float) -> Interval:
    """The gain that log-ratios of independent rounds show, as a ratio; infinitely wide before there are enough."""
    low, high = bounds(log_ratios, alpha)
    return Interval(math.exp(mean(log_ratios)), math.exp(low), _exp(high), 1 - alpha)


def fewest_that_prove(alpha: float) -> int:
    """How many observations it takes at least, however alike they are, before the interval ends anywhere."""
    return next(n for n in count(FEWEST) if math.isfinite(half_width(1.0, n, alpha)))


def pooled_deviation(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of one of two alike values, from their differences."""
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / (2 * len(pairs)))


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)
