"""The search on recorded landscapes: emulated machines, the real engine's samples (benchmarks/results/landscapes)."""

import math
import sys
from pathlib import Path

import pytest

from moetune.autotune.events import Silent
from moetune.autotune.result import profile_of
from moetune.autotune.search import search

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from landscapes import LANDSCAPES, MORE_STARTS, STARTS, Replay, read
from search_arms import ARMS, TRIALS, World, moetune, moetune_alike, still

NAMES = [landscape.name for landscape in LANDSCAPES]
OTHERS = [name for name in ARMS if name not in ("moetune", "GP")]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_exhaustive(name: str) -> None:
    """At least 400 configurations, five process starts each and more of the fastest, raw samples kept."""
    recording = read(name)
    assert len(recording.points) >= 400
    assert min(len(point.starts) for point in recording.points) == STARTS
    assert len(recording.optimum.starts) >= STARTS + MORE_STARTS
    assert all(point.config.n_ctx == recording.points[0].config.n_ctx for point in recording.points)


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


def test_where_all_are_alike_nobody_is_named() -> None:
    """The A/A comparison of the whole search, a few seeds."""
    world = World.of(read("desktop"))
    assert not any(moetune_alike(world, seed).named_winner for seed in range(3))


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_arms_spend_their_trials_and_choose_what_ran(name: str) -> None:
    """All through the same recording; what they would choose never gets slower by their own reckoning."""
    world = World.of(read("desktop"))
    outcome = ARMS[name](world, 7)
    assert len(outcome.steps) == (1 if name == "--fit" else TRIALS)
    assert [step.engine_s for step in outcome.steps] == sorted(step.engine_s for step in outcome.steps)
    assert outcome.chosen is not None
    assert math.isfinite(world.recording.nearest(outcome.chosen).true_turn_s)


def test_where_the_cache_loses_the_baseline_is_what_is_saved(tmp_path: Path) -> None:
    """The verdict says that nothing beat stock, why the cache did not, and the profile runs stock llama.cpp."""
    world = World.of(read("server"))
    request = world.landscape.request(tmp_path, n_trials=12, hits=world.recording.hits)
    result = search(
        request, Replay(world.recording, 7), world.recording.machine, world.recording.model, Silent(), still
    )
    assert not result.verdict.proven
    assert "Nothing beat stock" in result.verdict.sentence
    assert "the CPU alone is" in result.verdict.sentence
    profile = profile_of(result, machine_fingerprint="m", machine_label="m", moetune_version="1")
    assert profile is not None
    assert profile.config.cache is None
