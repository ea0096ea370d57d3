"""A remembered profile measured again: side by side with what it beat, by the rules of the race that proved it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from moetune.autotune.evaluate import usable
from moetune.autotune.noise import measure_noise
from moetune.autotune.race import Race, Round, Rules, Run, Standing, Track, race
from moetune.autotune.request import SearchRequest
from moetune.autotune.sequential import Interval
from moetune.autotune.verdict import figures_of, percent_of, range_of, seconds_instead_of
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement, Runner, Trace
from moetune.hardware.conditions import Conditions, read_conditions
from moetune.profiles.schema import Figures, Profile, SavedVerdict


class Holding(StrEnum):
    """What came of it. BASELINE: the profile claims no gain, so that there is none to prove."""

    HOLDS = "holds"
    GONE = "gone"
    UNDECIDED = "undecided"
    FAILED = "failed"
    BASELINE = "baseline"


@dataclass(frozen=True)
class Recheck:
    """interval: of the gain now, None without a race. result, baseline: figures now, None where nothing ran."""

    holding: Holding
    sentence: str
    interval: Interval | None
    rounds: int
    result: Figures | None
    baseline: Figures | None

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the profile."""
        return self.holding in (Holding.HOLDS, Holding.BASELINE)


def verify(
    profile: Profile,
    baseline: EngineConfig,
    trace: Trace,
    runner: Runner,
    *,
    rules: Rules,
    time_limit_s: float,
    progress: Callable[[str], None],
    conditions: Callable[[], Conditions] = read_conditions,
) -> Recheck:
    """Race the profile's configuration against `baseline`, the one it beat. The caller closes the runner."""

    def once(config: EngineConfig) -> Measurement | Failed:
        return usable(runner.measure(config, trace, passes=SearchRequest.passes, time_limit_s=time_limit_s))

    def measure(config: EngineConfig) -> Measurement | Failed:
        outcome = once(config)
        return once(config) if isinstance(outcome, Failed) else outcome

    rounds: list[Round] = []
    track = Track(
        measure=measure,
        turn_s=lambda measured: measured.turn_s(len(trace.prompt_tokens), len(trace.reply_tokens)),
        refresh=runner.close,
        conditions=conditions,
        keep=rounds.append,
        progress=progress,
        may_go_on=lambda: True,
    )
    if profile.config == baseline:
        measure_noise(baseline, track, rules, [])
        return _alone(profile, [entry for entry in rounds if entry.disturbed is None])
    return _judged(profile, race(baseline, [profile.config], track=track, rules=rules))


def renewed(profile: Profile, checked: Recheck) -> Profile:
    """The profile with the figures of `checked`, in which it held; ValueError where it was not raced."""
    if checked.interval is None or checked.result is None or checked.baseline is None:
        raise ValueError("only what was raced can be renewed")
    return replace(
        profile,
        result=checked.result,
        baseline=checked.baseline,
        gain=checked.interval.gain,
        gain_low=checked.interval.low,
        gain_high=checked.interval.high,
        verdict=SavedVerdict(profile.verdict.kind, checked.sentence),
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


_HOLDING = {Standing.WON: Holding.HOLDS, Standing.NOT_PROVEN: Holding.UNDECIDED, Standing.FAILED: Holding.FAILED}
_HEADS = {
    Holding.HOLDS: "Still holds",
    Holding.GONE: "Holds no more",
    Holding.UNDECIDED: "Not decided",
    Holding.FAILED: "Holds no more",
}


def _judged(profile: Profile, outcome: Race) -> Recheck:
    (arm,) = outcome.arms
    holding = _HOLDING.get(arm.standing, Holding.GONE)
    result, baseline = (_figures(outcome.runs_of(config)) for config in (arm.config, outcome.incumbent))
    said = [f"{_HEADS[holding]}: {arm.detail or _gain(arm.interval, profile.baseline_name)}"]
    if result is not None and baseline is not None:
        said.append(f"{seconds_instead_of(result.turn_s, baseline.turn_s)} a turn")
    said.append(f"{profile.gain:.2f}× ({profile.gain_low:.2f}–{profile.gain_high:.2f}) when it was made")
    said += [str(arm.standing)] if arm.standing is Standing.STALLS else []
    said += [outcome.stopped] if outcome.stopped and holding is Holding.UNDECIDED else []
    return Recheck(holding, _sentence(said, profile), arm.interval, arm.rounds, result, baseline)


def _alone(profile: Profile, rounds: list[Round]) -> Recheck:
    """What is its own baseline has nothing to beat; how fast it is now is told, without an interval: the figures
    of then and now were not taken side by side.
    """
    runs = [run for entry in rounds for run in entry.runs]
    now = _figures(runs)
    if now is None:
        return Recheck(Holding.FAILED, "It does not run, or the machine did not keep still.", None, 0, None, None)
    fastest_s, slowest_s = min(run.turn_s for run in runs), max(run.turn_s for run in runs)
    said = [
        f"This profile is {profile.baseline_name} itself, so there is no gain to prove",
        f"{now.turn_s:#.3g} s a turn now ({fastest_s:#.3g}–{slowest_s:#.3g})",
        f"{profile.result.turn_s:#.3g} s when it was made",
    ]
    return Recheck(Holding.BASELINE, _sentence(said, profile), None, len(rounds), now, now)


def _figures(runs: list[Run]) -> Figures | None:
    return figures_of([run.measurement for run in runs], [run.turn_s for run in runs]) if runs else None


def _gain(interval: Interval | None, baseline_name: str) -> str:
    if interval is None:
        return "no round was finished"
    confidence = percent_of(interval.confidence)
    return f"{interval.gain:.2f}× as fast as {baseline_name}, {confidence} interval {range_of(interval)}"


def _sentence(said: list[str], profile: Profile) -> str:
    text = "; ".join(" ".join(part.split()) for part in said)[:900] + "."
    return f"{text} (Emulated; no real device was measured.)" if profile.emulated else text
