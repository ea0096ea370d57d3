"""The race: a few candidates against the incumbent, in interleaved rounds, until the data decide.

A round measures everybody there and back, in fresh processes: what drifts slowly cancels within it.
Candidates that cannot win any more are dropped; rounds in which the machine did not keep still count for nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import mean, median
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter

from moetune.autotune.sequential import FEWEST, Interval, bounds, interval_of
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement
from moetune.hardware.conditions import Conditions, disturbance, strain

Measure = Callable[[EngineConfig], Measurement | Failed]


@dataclass(frozen=True)
class Rules:
    """What it takes to win. margin: a gain below it is not worth a change. risk: of naming any false winner at all.

    most_rounds: undecided after so many is "not proven". Disturbed rounds are repeated as often at most.
    """

    margin: float = 0.01
    risk: float = 0.05
    most_rounds: int = 12


@dataclass(frozen=True)
class Run:
    """One measurement. arm: index among the round's contenders; 0 is the incumbent."""

    arm: int
    measurement: Measurement
    turn_s: float


@dataclass(frozen=True)
class Round:
    """All contenders there and back. disturbed: why it does not count, None where it does."""

    contenders: tuple[EngineConfig, ...]
    runs: tuple[Run, ...]
    disturbed: str | None

    def of(self, arm: int) -> tuple[Run, ...]:
        """Both measurements of one contender."""
        return tuple(run for run in self.runs if run.arm == arm)

    def log_gain(self, arm: int) -> float:
        """How many times as fast as the incumbent, as a logarithm."""
        return mean(math.log(run.turn_s) for run in self.of(0)) - mean(math.log(run.turn_s) for run in self.of(arm))

    def log_slow_gain(self, arm: int) -> float:
        """The same of the speed that nine of ten tokens reach."""
        return mean(map(_log_slow_s, self.of(0))) - mean(map(_log_slow_s, self.of(arm)))


class Standing(StrEnum):
    """How a candidate came out."""

    WON = "won"
    NOT_PROVEN = "not proven"
    NO_GAIN = "no gain"
    OUTRUN = "outrun by another candidate"
    STALLS = "faster, but its slowest tokens are slower"
    FAILED = "failed"


@dataclass(frozen=True)
class Arm:
    """One candidate at the end. interval: None when it has no round. rounds: those it took part in and that count."""

    config: EngineConfig
    standing: Standing
    interval: Interval | None
    rounds: int
    detail: str = ""


@dataclass(frozen=True)
class Race:
    """What was run and what came of it. stopped: why it ended before it was decided, None otherwise."""

    incumbent: EngineConfig
    arms: tuple[Arm, ...]
    rounds: tuple[Round, ...]
    margin: float
    stopped: str | None

    @property
    def winner(self) -> Arm | None:
        """The candidate with the proven gain, if any."""
        return next((arm for arm in self.arms if arm.standing is Standing.WON), None)

    @property
    def closest(self) -> Arm | None:
        """The winner, else the candidate with the largest gain."""
        raced = [arm for arm in self.arms if arm.interval is not None]
        return self.winner or max(raced, key=lambda arm: arm.interval.gain if arm.interval else 0.0, default=None)

    @property
    def valid_rounds(self) -> tuple[Round, ...]:
        """Without those that were disturbed."""
        return tuple(entry for entry in self.rounds if entry.disturbed is None)

    def runs_of(self, config: EngineConfig) -> list[Run]:
        """Every measurement of one contender that counts."""
        return [
            run
            for entry in self.valid_rounds
            for run in entry.runs
            if entry.contenders[run.arm] == config and (run.arm > 0 or config == self.incumbent)
        ]


def _sound(entry: Round) -> Round:
    """Of a stored round: everybody ran, and every figure can be computed with."""
    there_and_back = sorted([*range(len(entry.contenders))] * 2)
    everybody = bool(entry.contenders) and sorted(run.arm for run in entry.runs) == there_and_back
    if not everybody or not all(run.measurement.has_timings and 0 < run.turn_s < math.inf for run in entry.runs):
        raise ValueError("a round without usable figures")
    return entry


ROUND = TypeAdapter(Annotated[Round, AfterValidator(_sound)])
# Of dropping a candidate that is faster than the leader by more than the margin: it costs speed, and names nobody.
_DROP_RISK = 0.2


@dataclass
class Track:
    """Where rounds are run. refresh: ends the engine's processes. keep: stores a round. may_go_on: time is left."""

    measure: Measure
    turn_s: Callable[[Measurement], float]
    refresh: Callable[[], None]
    conditions: Callable[[], Conditions]
    keep: Callable[[Round], None]
    progress: Callable[[str], None]
    may_go_on: Callable[[], bool]

    def run_round(self, contenders: tuple[EngineConfig, ...], *, backwards: bool = False) -> Round | tuple[int, Failed]:
        """One round, kept; or which contender failed, and how. backwards: the last one begins and ends it."""
        self.refresh()
        before = self.conditions()
        runs: list[Run] = []
        there = list(range(len(contenders)))
        if backwards:
            there.reverse()
        for arm in (*there, *reversed(there)):
            outcome = self.measure(contenders[arm])
            if isinstance(outcome, Failed):
                return arm, outcome
            runs.append(Run(arm, outcome, self.turn_s(outcome)))
        # An engine that has ended leaves a device that is neither hot nor slowed down.
        strained = strain(self.conditions())
        self.refresh()
        finished = Round(contenders, tuple(runs), strained or disturbance(before, self.conditions()))
        self.keep(finished)
        return finished


@dataclass
class _Rival:
    config: EngineConfig
    standing: Standing = Standing.NOT_PROVEN
    detail: str = ""

    @property
    def racing(self) -> bool:
        return self.standing is Standing.NOT_PROVEN


def race(
    incumbent: EngineConfig,
    candidates: Sequence[EngineConfig],
    *,
    track: Track,
    rules: Rules,
    earlier: Sequence[Round] = (),
) -> Race:
    """Run rounds until a candidate is proven and no other can still beat it, none can win, or the rounds are used up.

    earlier: rounds of an interrupted or finished race of the same study; a race that is over is not run again.
    """
    rivals = [_Rival(config) for config in candidates]
    rounds: list[Round] = []
    scores = _Scores(rivals, rules, rounds)
    for entry in earlier:
        if entry.contenders[0] == incumbent and len(entry.contenders) > 1:
            # One by one, as when they were run: who was dropped after the third stays so.
            rounds.append(entry)
            scores.judge()
    began, stopped = len(rounds), None
    while scores.judge() and stopped is None:
        # A finalist that came later has its rounds, too.
        racing = [rival for rival in scores.racing() if len(scores.gains(rival.config)) < rules.most_rounds]
        stopped = _why_stop(racing, rounds[began:], rules, track)
        if stopped is None:
            track.progress(scores.status(racing))
            stopped = _run(incumbent, racing, track, rounds)
    arms = tuple(scores.arm_of(rival) for rival in rivals)
    return Race(incumbent, arms, tuple(rounds), rules.margin, stopped)


def settled(rounds: Sequence[Round], rules: Rules) -> Race | None:
    """How the kept rounds of a study's last race stand; nothing is run. None where nobody raced."""
    raced = [entry for entry in rounds if len(entry.contenders) > 1]
    if not raced:
        return None
    incumbent = raced[-1].contenders[0]
    last = [entry for entry in raced if entry.contenders[0] == incumbent]
    rivals = [_Rival(config) for config in dict.fromkeys(c for entry in last for c in entry.contenders[1:])]
    scores = _Scores(rivals, rules, [])
    for entry in last:
        # As the race did: who was out after a round stays out.
        scores.rounds.append(entry)
        scores.judge()
    arms = tuple(scores.arm_of(rival) for rival in rivals)
    return Race(incumbent, arms, tuple(last), rules.margin, None)


def _run(incumbent: EngineConfig, racing: list[_Rival], track: Track, rounds: list[Round]) -> str | None:
    contenders = (incumbent, *(rival.config for rival in racing))
    # Who begins has a fresh process for each of its runs, who turns round has one for both.
    finished = track.run_round(contenders, backwards=len(rounds) % 2 == 1)
    if isinstance(finished, Round):
        rounds.append(finished)
        return None
    arm, failed = finished
    if arm == 0:
        return f"the baseline failed in the race: {failed.reason}"
    racing[arm - 1].standing, racing[arm - 1].detail = Standing.FAILED, f"{failed.reason}: {failed.detail}"
    return None


def _why_stop(racing: list[_Rival], run_now: list[Round], rules: Rules, track: Track) -> str | None:
    disturbed = [entry.disturbed for entry in run_now if entry.disturbed is not None]
    if not racing:
        return f"undecided after {rules.most_rounds} rounds"
    if len(disturbed) >= rules.most_rounds:
        return f"the machine did not keep still: {disturbed[-1]}"
    return None if track.may_go_on() else "the time is used up"


@dataclass
class _Scores:
    """What the rounds say of each candidate. All that share the race share its risk (Bonferroni)."""

    rivals: list[_Rival]
    rules: Rules
    rounds: list[Round]

    @property
    def alpha(self) -> float:
        raced = {config for entry in self.rounds for config in entry.contenders[1:]}
        return self.rules.risk / max(1, len(raced | {rival.config for rival in self.rivals}))

    def gains(self, config: EngineConfig) -> dict[int, float]:
        """Log-gains by round."""
        return {i: entry.log_gain(arm) for i, entry, arm in self._valid(config)}

    def judge(self) -> bool:
        """Set standings; True while another round could change one."""
        least = math.log(1 + self.rules.margin)
        for rival in self.racing():
            _, high = bounds(list(self.gains(rival.config).values()), self.alpha)
            if high < least:
                rival.standing = Standing.NO_GAIN
            elif bounds(self._slow_gains(rival), self.alpha)[1] < -least:
                rival.standing = Standing.STALLS
        leader = self._leader()
        if leader is None:
            return bool(self.racing())
        for rival in self.racing():
            if rival is not leader and self._is_outrun(rival, leader, least):
                rival.standing = Standing.OUTRUN
        low, _ = bounds(list(self.gains(leader.config).values()), self.alpha)
        if low <= least or any(rival is not leader and not self._stalls(rival) for rival in self.racing()):
            return True
        leader.standing = Standing.WON
        return False

    def arm_of(self, rival: _Rival) -> Arm:
        gains = list(self.gains(rival.config).values())
        interval = interval_of(gains, self.alpha) if gains else None
        standing = rival.standing
        if rival.racing and interval and interval.low > 1 + self.rules.margin:
            if self._stalls(rival):
                standing = Standing.STALLS
            elif rival is self._leader() and all(other.standing is not Standing.WON for other in self.rivals):
                # Proven, though others might be a little faster still.
                standing = Standing.WON
        return Arm(rival.config, standing, interval, len(gains), rival.detail)

    def status(self, racing: list[_Rival]) -> str:
        """The round that comes next, for those that still race."""
        at = 1 + min(len(self.gains(rival.config)) for rival in racing)
        lost = sum(entry.disturbed is not None for entry in self.rounds)
        text = f"round {at} of {self.rules.most_rounds} at most, {len(racing)} in the race"
        return f"{text}; {lost} disturbed and repeated" if lost else text

    def racing(self) -> list[_Rival]:
        """Those that are not decided."""
        return [rival for rival in self.rivals if rival.racing]

    def _leader(self) -> _Rival | None:
        """One whose slowest tokens got slower must not drop the others: it cannot win."""
        raced = [r for r in self.racing() if len(self.gains(r.config)) >= FEWEST and not self._stalls(r)]
        return max(raced, key=lambda rival: mean(self.gains(rival.config).values()), default=None)

    def _is_outrun(self, rival: _Rival, leader: _Rival, least: float) -> bool:
        ours, theirs = self.gains(rival.config), self.gains(leader.config)
        differences = [ours[i] - theirs[i] for i in ours.keys() & theirs.keys()]
        return bounds(differences, _DROP_RISK)[1] < least

    def _stalls(self, rival: _Rival) -> bool:
        slow = self._slow_gains(rival)
        return bool(slow) and median(slow) < -math.log(1 + self.rules.margin)

    def _slow_gains(self, rival: _Rival) -> list[float]:
        return [entry.log_slow_gain(arm) for _, entry, arm in self._valid(rival.config)]

    def _valid(self, config: EngineConfig) -> list[tuple[int, Round, int]]:
        return [
            (i, entry, entry.contenders.index(config, 1))
            for i, entry in enumerate(self.rounds)
            if entry.disturbed is None and config in entry.contenders[1:]
        ]


def _log_slow_s(run: Run) -> float:
    return math.log(run.measurement.slow_token_s)
