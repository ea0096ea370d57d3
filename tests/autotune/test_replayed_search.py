"""The search on recorded landscapes: emulated machines, the real engine's samples (benchmarks/results/landscapes)."""

import math
import sys
from pathlib import Path

import pytest

from moetune.autotune.events import Silent
from moetune.autotune.result import profile_of
from moetune.autotune.search import search

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from landscapes import LANDSCAPES, Replay, read  # noqa: E402
from search_arms import World, moetune, still  # noqa: E402

NAMES = [landscape.name for landscape in LANDSCAPES]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_exhaustive(name: str) -> None:
    """At least 400 configurations, five process starts each, raw samples kept, and some that do not fit."""
    points = read(name).points
    assert len(points) >= 400
    assert {len(point.starts) for point in points} == {5}
    assert any(math.isinf(point.true_turn_s) for point in points)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_is_never_worse_than_its_baselines(name: str) -> None:
    """One seed: what it chooses, what it must not do on the way."""
    world = World.of(read(name))
    outcome = moetune(world, 1234)
    assert outcome.chosen is not None
    assert outcome.baseline is not None
    chosen, baseline = (world.recording.nearest(c).true_turn_s for c in (outcome.chosen, outcome.baseline))
    assert chosen <= 1.01 * baseline
    assert outcome.out_of_memory == 0
    assert world.recording.admits(outcome.chosen)


def test_where_the_cache_loses_the_baseline_is_what_is_saved(tmp_path: Path) -> None:
    """The verdict says that nothing beat stock, why the cache did not, and the profile runs stock llama.cpp."""
    world = World.of(read("flat"))
    request = world.landscape.request(tmp_path, n_trials=12, hits=world.recording.hits)
    result = search(
        request, Replay(world.recording, 7), world.recording.machine, world.recording.model, Silent(), still
    )
    assert not result.verdict.proven
    assert "Nothing beat stock" in result.verdict.sentence
    assert "the best cache served only" in result.verdict.sentence
    profile = profile_of(result, machine_fingerprint="m", machine_label="m", moetune_version="1")
    assert profile is not None
    assert profile.config.cache is None
