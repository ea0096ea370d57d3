"""A profile measured again: what still holds, what does not, and what cannot be told."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner, Landscape
from world import WORKLOAD, gpu, machine_with, moe_model, runner_for, still

from moetune.autotune.race import Rules
from moetune.autotune.trace import build_trace, shape_for
from moetune.autotune.verify import Holding, Recheck, renewed, verify
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import FailureReason
from moetune.hardware.conditions import Conditions
from moetune.profiles.schema import Profile, read_profile, to_yaml

GOLDEN = Path(__file__).parents[1] / "profiles" / "goldens" / "profile-v3.yaml"
BASE = EngineConfig(n_ctx=2048, n_threads=4, device="CUDA0", gpu_layers=9, ram_expert_layers=8)
CACHED = replace(BASE, cache=CacheKnobs(slots=32))


def profile(config: EngineConfig = CACHED, emulated: str | None = None) -> Profile:
    golden = read_profile(GOLDEN)
    return replace(golden, n_ctx=2048, config=config, baseline_config=BASE, workload="tiny", emulated=emulated)


def check(
    landscape: Landscape,
    found: Profile | None = None,
    rounds: int = 6,
    conditions: Conditions | None = None,
    stray: bool = False,
) -> Recheck:
    runner: FakeRunner = runner_for(machine_with(gpu(900)), moe_model(), landscape)
    checked = verify(
        found or profile(),
        BASE,
        build_trace(WORKLOAD, shape_for(WORKLOAD, 2048), 2048, runner),
        runner,
        rules=Rules(most_rounds=rounds),
        time_limit_s=60,
        progress=lambda words: None,
        conditions=lambda: conditions or still(),
    )
    # There and back: the two are interleaved.
    assert (
        stray or checked.holding is Holding.FAILED or runner.launched[:4] in ([BASE, CACHED, CACHED, BASE], [BASE] * 4)
    )
    assert runner.closed
    return checked


def test_a_gain_that_is_still_there_holds() -> None:
    """With the interval now, and the one when it was made."""
    checked = check(Landscape(noise=0.01))
    assert (checked.holding, checked.good) == (Holding.HOLDS, True)
    assert checked.interval is not None
    assert 1.01 < checked.interval.low < checked.interval.gain < checked.interval.high
    for words in (
        "Still holds",
        f"{checked.interval.gain:.2f}×",
        "95 % interval",
        "1.40× (1.35–1.44) when it was made",
    ):
        assert words in checked.sentence


def test_a_gain_that_is_gone_does_not_hold() -> None:
    """A driver that made the baseline as fast as the cache."""
    checked = check(Landscape(noise=0.001, hit_gain=0.0, plugin_cost=1.2))
    assert (checked.holding, checked.good) == (Holding.GONE, False)
    assert checked.interval is not None
    assert checked.interval.high < 1.01
    assert "Holds no more" in checked.sentence


def test_noise_is_neither_yes_nor_no() -> None:
    """Too few rounds on too restless a machine."""
    checked = check(Landscape(noise=0.5, hit_gain=0.1), rounds=3)
    assert (checked.holding, checked.good, checked.rounds) == (Holding.UNDECIDED, False, 3)
    assert "undecided after 3 rounds" in checked.sentence


def test_what_does_not_run_any_more_says_why() -> None:
    """The engine's own words; a single stray failure is tried again."""
    checked = check(Landscape(broken=lambda config: FailureReason.OUT_OF_MEMORY if config.has_slots else None))
    assert (checked.holding, checked.interval) == (Holding.FAILED, None)
    assert "out of memory" in checked.sentence
    failures = iter([FailureReason.CRASHED])
    stray = Landscape(noise=0.01, broken=lambda config: next(failures, None) if config.has_slots else None)
    assert check(stray, stray=True).holding is Holding.HOLDS


def test_a_restless_machine_proves_nothing() -> None:
    """Rounds that were disturbed do not count."""
    checked = check(Landscape(), conditions=replace(still(), hot=True))
    assert (checked.holding, checked.rounds) == (Holding.UNDECIDED, 0)
    assert "did not keep still" in checked.sentence


def test_a_profile_that_is_its_own_baseline_has_nothing_to_prove() -> None:
    """Its speed now is told beside the one it had, and claims nothing."""
    checked = check(Landscape(), profile(BASE))
    assert (checked.holding, checked.interval) == (Holding.BASELINE, None)
    assert "8.66 s when it was made" in checked.sentence
    with pytest.raises(ValueError, match="raced"):
        renewed(profile(BASE), checked)


def test_what_holds_can_be_kept_with_its_new_figures(tmp_path: Path) -> None:
    """A profile like any other; emulated figures say so."""
    old = profile(emulated="desktop")
    checked = check(Landscape(noise=0.01), old)
    assert "(Emulated" in checked.sentence
    new = renewed(old, checked)
    assert checked.interval is not None
    assert (new.gain, new.result, new.verdict.sentence) == (checked.interval.gain, checked.result, checked.sentence)
    assert new.created_at > old.created_at
    (tmp_path / "p.yaml").write_text(to_yaml(new))
    assert read_profile(tmp_path / "p.yaml") == new
