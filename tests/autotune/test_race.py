"""The race: interleaved, sequential, and noise does not win it."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import ValidationError
from world import still

from moetune.autotune.noise import measure_noise, noise_of
from moetune.autotune.race import ROUND, Race, Round, Rules, Standing, Track, race
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import Failed, FailureReason, Measurement
from moetune.hardware.conditions import Conditions

BASE = EngineConfig(n_ctx=512, n_threads=4)
RIVALS = tuple(EngineConfig(n_ctx=512, n_threads=4, cache=CacheKnobs(slots=n)) for n in (8, 16, 24))
Measure = Callable[[EngineConfig], Measurement | Failed]
RULES = Rules()


def measured(seconds: float, slowest: float = 1.0) -> Measurement:
    """Ten tokens, of which two may be slower than the rest by a factor; their sum stays."""
    fast = seconds / (8 + 2 * slowest)
    return Measurement(64, (seconds,), (fast,) * 8 + (fast * slowest,) * 2, 0, 0, None, 0.0)


class Machine:
    """Speeds by configuration, noise between processes and within, and drift by the measurement."""

    def __init__(self, seed: int, speed: dict[EngineConfig, float], between: float = 0.02) -> None:
        self.source, self.speed, self.between = random.Random(seed), speed, between
        self.process: dict[EngineConfig, float] = {}
        self.order: list[EngineConfig] = []
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1
        self.process = {}

    def measure(self, config: EngineConfig) -> Measurement:
        self.order.append(config)
        luck = self.process.setdefault(config, self.source.gauss(0, self.between))
        drift = 0.03 * len(self.order) / 36
        return measured(math.exp(luck + self.source.gauss(0, 0.01) + drift) / self.speed.get(config, 1.0))


def run(
    machine: Machine,
    rivals: tuple[EngineConfig, ...] = RIVALS,
    rules: Rules = RULES,
    measure: Measure | None = None,
    conditions: Callable[[], Conditions] = still,
    earlier: tuple[Round, ...] = (),
    kept: list[Round] | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Race:
    return race(
        BASE,
        rivals,
        track=track_of(machine, measure, conditions, kept, may_go_on),
        rules=rules,
        earlier=earlier,
    )


def track_of(
    machine: Machine,
    measure: Measure | None = None,
    conditions: Callable[[], Conditions] = still,
    kept: list[Round] | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Track:
    return Track(
        measure=measure or machine.measure,
        turn_s=lambda m: m.turn_s(64, 10),
        refresh=machine.refresh,
        conditions=conditions,
        keep=kept.append if kept is not None else lambda entry: None,
        progress=lambda text: None,
        may_go_on=may_go_on,
    )


def test_equals_hardly_ever_win() -> None:
    """A/A: three candidates equal to the baseline; in 400 races at most 1 % name one."""
    assert sum(run(Machine(seed, {})).winner is not None for seed in range(400)) <= 4


def test_a_real_gain_is_found_and_the_fastest_named() -> None:
    """10 % and 5 % faster: nearly always one of them wins, and it is the faster one."""
    speed = {RIVALS[0]: 1.05, RIVALS[1]: 1.10}
    races = [run(Machine(seed, speed)) for seed in range(100)]
    winners = [r.winner.config for r in races if r.winner]
    assert len(winners) >= 90
    assert winners.count(RIVALS[1]) >= 0.9 * len(winners)


def test_intervals_cover_the_truth() -> None:
    """As often as they say, though every race stops when it likes what it sees."""
    covered = [
        arm.interval.low <= 1.10 <= arm.interval.high
        for seed in range(200)
        for arm in run(Machine(seed, {RIVALS[0]: 1.10}), RIVALS[:1]).arms
        if arm.interval is not None
    ]
    assert sum(covered) >= 0.93 * len(covered)


def test_a_large_gain_takes_few_rounds() -> None:
    """Twice as fast is seen after three or four."""
    assert len(run(Machine(1, {RIVALS[0]: 2.0}), RIVALS[:1]).rounds) <= 4


def test_a_gain_below_the_margin_does_not_win() -> None:
    """Half a percent, measured without any noise, is not worth a change; and that is soon clear."""
    quiet = run(Machine(0, {}), RIVALS[:1], measure=lambda c: measured(0.995 if c == RIVALS[0] else 1.0))
    assert quiet.winner is None
    assert quiet.arms[0].standing is Standing.NO_GAIN
    assert len(quiet.rounds) == 3


def test_hopeless_candidates_are_dropped() -> None:
    """One that is half as fast does not take part to the end."""
    result = run(Machine(3, {RIVALS[0]: 0.5, RIVALS[1]: 1.03}), RIVALS[:2])
    slow, fast = result.arms
    assert slow.standing in (Standing.NO_GAIN, Standing.OUTRUN)
    assert slow.rounds < fast.rounds


def test_rounds_go_there_and_back_in_fresh_processes() -> None:
    """A B C, C B A, and the next one from the other end; drift cancels within a round."""
    machine = Machine(0, {})
    run(machine, RIVALS[:2], Rules(most_rounds=3))
    a, (b, c, _) = BASE, RIVALS
    assert machine.order[:12] == [a, b, c, c, b, a, c, b, a, a, b, c]
    assert machine.refreshed >= 3


def test_drift_alone_names_nobody() -> None:
    """The machine gets slower by 1 % with every measurement."""
    calls = 0

    def drifting(_: EngineConfig) -> Measurement:
        nonlocal calls
        calls += 1
        return measured(1.01**calls)

    result = run(Machine(0, {}), measure=drifting)
    assert result.winner is None
    assert all(arm.interval and arm.interval.gain == pytest.approx(1.0) for arm in result.arms)


def test_faster_with_worse_stalls_does_not_win() -> None:
    """The mean improves, and one token in five takes four times as long as before."""
    result = run(
        Machine(0, {}), RIVALS[:1], measure=lambda c: measured(0.8, slowest=4.0) if c == RIVALS[0] else measured(1.0)
    )
    assert result.winner is None
    assert result.arms[0].standing is Standing.STALLS
    assert result.arms[0].rounds < RULES.most_rounds


def test_one_that_stalls_drops_nobody() -> None:
    """It is the fastest by far, and cannot win; the one behind it does."""
    speed = {RIVALS[0]: 2.0, RIVALS[1]: 1.2}
    machine = Machine(0, speed)

    def measure(config: EngineConfig) -> Measurement:
        usual = machine.measure(config)
        return measured(sum(usual.tg_samples_s), slowest=8.0) if config == RIVALS[0] else usual

    result = run(machine, RIVALS[:2], measure=measure)
    assert result.winner is not None
    assert result.winner.config == RIVALS[1]


@pytest.mark.parametrize("before", [1.2, 1.0])
def test_a_finalist_that_comes_later_has_its_rounds(before: float) -> None:
    """After a race that another has won, and after one whose rounds are used up."""
    kept: list[Round] = []
    run(Machine(3, {RIVALS[0]: before}), RIVALS[:1], kept=kept)
    result = run(Machine(4, {RIVALS[0]: before, RIVALS[1]: 1.5}), RIVALS[:2], earlier=tuple(kept))
    assert result.winner is not None
    assert result.winner.config == RIVALS[1]
    assert result.arms[1].rounds < len(result.valid_rounds)


def test_disturbances_of_an_earlier_run_are_forgiven() -> None:
    """The machine keeps still now."""
    lost = (replace(run(Machine(5, {}), RIVALS[:1]).rounds[0], disturbed="it rained"),) * RULES.most_rounds
    result = run(Machine(6, {RIVALS[0]: 1.5}), RIVALS[:1], earlier=lost)
    assert result.winner is not None
    assert result.arms[0].rounds == len(result.rounds) - len(lost)


def test_a_machine_strained_at_the_end_of_a_round_disturbs_it() -> None:
    """Though it has cooled down as soon as the engine has ended."""
    looks = 0

    def conditions() -> Conditions:
        nonlocal looks
        looks += 1
        return replace(still(), hot=looks % 3 == 2)

    result = run(Machine(2, {RIVALS[0]: 2.0}), conditions=conditions, rules=Rules(most_rounds=3))
    assert result.stopped == "the machine did not keep still: a sensor reached its temperature limit"


@pytest.mark.parametrize("damage", ["nobody", "one run", "no time"])
def test_a_damaged_round_is_refused(damage: str) -> None:
    """Nothing that cannot be computed with comes out of a study."""
    kept: list[Round] = []
    run(Machine(7, {RIVALS[0]: 1.2}), RIVALS[:1], kept=kept)
    whole = kept[0]
    match damage:
        case "nobody":
            broken = replace(whole, contenders=(), runs=())
        case "one run":
            broken = replace(whole, runs=whole.runs[:-1])
        case _:
            broken = replace(whole, runs=(replace(whole.runs[0], turn_s=0.0), *whole.runs[1:]))
    assert ROUND.validate_json(ROUND.dump_json(whole)) == whole
    with pytest.raises(ValidationError, match="without usable figures"):
        ROUND.validate_json(ROUND.dump_json(broken))


def test_a_candidate_that_fails_is_out_and_the_race_goes_on() -> None:
    """The others are decided all the same."""
    machine = Machine(5, {RIVALS[1]: 1.3})

    def measure(config: EngineConfig) -> Measurement | Failed:
        return Failed(FailureReason.CRASHED, "gone") if config == RIVALS[0] else machine.measure(config)

    result = run(machine, RIVALS[:2], measure=measure)
    assert result.arms[0].standing is Standing.FAILED
    assert result.winner is not None
    assert result.winner.config == RIVALS[1]


def test_a_baseline_that_fails_ends_it() -> None:
    """There is nothing to compare with."""
    result = run(Machine(0, {}), measure=lambda c: Failed(FailureReason.HUNG, "") if c == BASE else measured(1.0))
    assert result.winner is None
    assert result.stopped is not None
    assert "baseline failed" in result.stopped


def test_disturbed_rounds_do_not_count() -> None:
    """Every second round another program took the processors: kept, said, repeated."""
    looks = 0

    def conditions() -> Conditions:
        nonlocal looks
        looks += 1
        # Read before, at the end of and after a round.
        return replace(still(), at_s=float(looks), busy_s=8.0 * (looks % 6 == 3))

    kept: list[Round] = []
    result = run(Machine(2, {RIVALS[0]: 1.5}), RIVALS[:1], conditions=conditions, kept=kept)
    disturbed = [entry.disturbed for entry in kept if entry.disturbed]
    assert disturbed
    assert "other programs" in disturbed[0]
    assert result.arms[0].rounds == len(kept) - len(disturbed)
    assert result.winner is not None


def test_a_restless_machine_proves_nothing() -> None:
    """When no round stands, there is no winner, and it is said why."""
    looks = 0

    def conditions() -> Conditions:
        nonlocal looks
        looks += 1
        return replace(still(), throttles=looks)

    result = run(Machine(2, {RIVALS[0]: 2.0}), conditions=conditions, rules=Rules(most_rounds=3))
    assert result.winner is None
    assert result.stopped is not None
    assert "did not keep still" in result.stopped


def test_a_race_that_was_interrupted_goes_on() -> None:
    """Rounds of before count, and survive being stored."""
    kept: list[Round] = []
    left = iter([True, True, False])
    first = run(Machine(7, {RIVALS[0]: 1.2}), RIVALS[:1], kept=kept, may_go_on=lambda: next(left))
    assert first.stopped == "the time is used up"
    assert len(kept) == 2
    stored = tuple(ROUND.validate_json(ROUND.dump_json(entry)) for entry in kept)
    second = run(Machine(8, {RIVALS[0]: 1.2}), RIVALS[:1], earlier=stored)
    assert second.winner is not None
    assert second.rounds[:2] == stored


def test_a_finished_race_is_not_run_again() -> None:
    """Its rounds give the same outcome without a measurement."""
    kept: list[Round] = []
    first = run(Machine(7, {RIVALS[0]: 1.2}), RIVALS[:1], kept=kept)
    machine = Machine(8, {})
    assert run(machine, RIVALS[:1], earlier=tuple(kept)) == first
    assert machine.order == []


def test_noise_is_estimated() -> None:
    """3 % between processes and 1 % within are told apart, and the smallest visible effect follows."""
    found = []
    for seed in range(60):
        noise = measure_noise(BASE, track_of(Machine(seed, {}, between=0.03)), RULES, [])
        assert noise is not None
        found.append(noise)
    assert sum(n.within for n in found) / 60 == pytest.approx(0.01, rel=0.3)
    assert sum(n.between for n in found) / 60 == pytest.approx(0.03, rel=0.35)
    quiet, loud = (measure_noise(BASE, track_of(Machine(1, {}, between=b)), RULES, []) for b in (0.001, 0.1))
    assert quiet is not None
    assert loud is not None
    assert RULES.margin <= quiet.smallest_effect < loud.smallest_effect


def test_noise_is_not_measured_twice() -> None:
    """A resumed search has its A/A rounds already."""
    kept: list[Round] = []
    first = measure_noise(BASE, track_of(Machine(1, {}), kept=kept), RULES, [])
    machine = Machine(2, {})
    assert measure_noise(BASE, track_of(machine), RULES, kept) == first == noise_of(kept, RULES)
    assert machine.order == []
