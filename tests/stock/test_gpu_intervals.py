"""The statistics of benchmarks/gpu.sh, which runs where neither NumPy nor SciPy is."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

from intervals import blocks, ratio_of_sums


def test_ratio_is_of_sums_and_the_median_over_runs() -> None:
    """A slow token weighs by its time, and one odd process does not move the figure."""
    runs = [[(2.0, 1.0), (10.0, 5.0)], [(3.0, 1.0)], [(90.0, 1.0)]]
    assert ratio_of_sums(runs).value == 3.0


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of many experiments with a known ratio, about 95 % have it inside their interval."""
    rng = random.Random(7)
    covered = 0
    for experiment in range(100):
        runs = [[(rng.gauss(2, 0.4), rng.gauss(1, 0.2)) for _ in range(16)] for _ in range(5)]
        interval = ratio_of_sums(runs, seed=experiment)
        assert interval.low <= interval.value <= interval.high
        covered += interval.low <= 2 <= interval.high
    assert covered >= 88


def test_blocks_keep_neighbours_and_the_rest_together() -> None:
    """Nothing is dropped at the end of a run."""
    assert blocks([1.0] * 20, [2.0] * 20, size=16) == [(16.0, 32.0), (4.0, 8.0)]


def test_no_samples_is_an_error() -> None:
    """A figure out of nothing would look like a figure."""
    with pytest.raises(ValueError, match="no samples"):
        ratio_of_sums([[(1.0, 1.0)], []])
