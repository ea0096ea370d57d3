"""Intervals that stay true under continuous looking."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetune.autotune.sequential import (
    FEWEST,
    bounds,
    fewest_that_prove,
    half_width,
    interval_of,
    pooled_deviation,
)

RUNS = 1500


def test_the_truth_hardly_ever_leaves_at_any_time() -> None:
    """Looking after each of 30 observations excludes the true mean in at most the promised share of runs."""
    source = random.Random(1)
    left = 0
    for _ in range(RUNS):
        low, high = bounds([source.gauss(0.7, 0.3) for _ in range(30)], 0.1)
        left += not low <= 0.7 <= high
    # 0.1 and three standard errors of a share of 1,500 runs.
    assert left / RUNS <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / RUNS)


def test_looking_with_the_usual_interval_would_not_do() -> None:
    """Student's interval at every look excludes the truth far more often: the guarantee above is worth its width."""
    from scipy.stats import t

    source = random.Random(1)
    left = 0
    for _ in range(300):
        values = [source.gauss(0.0, 1.0) for _ in range(30)]
        for n in range(3, 31):
            seen = values[:n]
            centre = sum(seen) / n
            spread = math.sqrt(sum((v - centre) ** 2 for v in seen) / (n - 1) / n)
            if abs(centre) > t.ppf(0.95, n - 1) * spread:
                left += 1
                break
    assert left / 300 > 0.2


def test_the_width_is_where_the_bayes_factor_reaches_its_level() -> None:
    """Numerically: at the bound the factor of the t statistic is 1 ÷ alpha."""
    n, alpha, effect_variance = 9, 0.04, 10.0
    t = half_width(1.0, n, alpha) * math.sqrt(n)
    spread = 1 + n * effect_variance
    factor = spread**-0.5 * ((1 + t**2 / (n - 1)) / (1 + t**2 / ((n - 1) * spread))) ** (n / 2)
    assert factor == pytest.approx(1 / alpha)


@given(st.lists(st.floats(-1, 1), min_size=FEWEST, max_size=20), st.floats(0.001, 0.2))
def test_bounds_only_ever_narrow(values: list[float], alpha: float) -> None:
    """An observation more never gives back what was excluded."""
    before, after = bounds(values[:-1], alpha), bounds(values, alpha)
    assert after[0] >= before[0]
    assert after[1] <= before[1]


def test_too_few_observations_bound_nothing() -> None:
    """Two values that happen to agree prove nothing."""
    assert interval_of([0.5, 0.5], 0.05).low == 0
    assert math.isinf(interval_of([0.5, 0.5], 0.05).high)


@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.05 / 6, 0.05 / 40])
def test_the_fewest_rounds_that_prove_anything(alpha: float) -> None:
    """With one fewer not even equal observations do."""
    fewest = fewest_that_prove(alpha)
    assert bounds([0.5] * fewest, alpha) == (0.5, 0.5)
    assert bounds([0.5] * (fewest - 1), alpha) == (-math.inf, math.inf)


def test_the_deviation_comes_from_differences() -> None:
    """Pairs with different centres say nothing wrong."""
    source = random.Random(3)
    pairs = [(c + source.gauss(0, 0.5), c + source.gauss(0, 0.5)) for c in range(2000)]
    assert pooled_deviation(pairs) == pytest.approx(0.5, rel=0.05)
