"""Measures one configuration and keeps what came of it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean, median

from moetune.autotune.cost import CostModel
from moetune.autotune.events import SearchEvents
from moetune.autotune.memory import MemoryModel
from moetune.autotune.noise import Noise
from moetune.autotune.quality_gate import QualityGate
from moetune.autotune.record import NotLaunched, Origin, Outcome, TrialRecord
from moetune.autotune.request import SearchRequest
from moetune.autotune.space import Space
from moetune.autotune.study import Study
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, FailureReason, Measurement, Runner, Trace
from moetune.engine.model import Model
from moetune.hardware.conditions import Conditions, read_conditions

# A disk or network share that gives less is too slow to search on.
_SLOWEST_LOAD_BYTES_S = 50e6
# Where nothing is known of a machine's noise.
_SCREENING_NOISE = 0.02
_STANDARD_ERRORS = 2.0


@dataclass
class Session:
    """One search under way. memory and cost learn from every trial, other workers' too; all else stays as it was given.

    earlier: what other studies of this model found best here. conditions: reads whether the machine keeps still.
    began_s: when, by the clock. noise: of the machine, once it has been measured.
    """

    request: SearchRequest
    space: Space
    study: Study
    runner: Runner
    trace: Trace
    events: SearchEvents
    memory: MemoryModel
    cost: CostModel
    gate: QualityGate
    earlier: tuple[EngineConfig, ...] = ()
    conditions: Callable[[], Conditions] = field(default=read_conditions)
    clock: Callable[[], float] = field(default=time.monotonic)
    began_s: float = 0.0
    noise: Noise | None = None
    _learnt: int = 0

    def __post_init__(self) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Learn from the records that have come since, whoever measured them."""
        self.study.refresh()
        for record in self.study.records[self._learnt :]:
            self._learn(record.config, record.outcome)
        self._learnt = len(self.study.records)

    @property
    def best(self) -> TrialRecord | None:
        """The fastest trial so far that is not known to be outside the quality gate, baselines included."""
        return fastest(self.gate.admissible(self.study.records))

    @property
    def best_baseline(self) -> TrialRecord | None:
        """The fastest baseline so far whose KV types may be chosen."""
        return fastest_baseline(self.gate.admissible(self.study.records))

    def admitted(self, records: Iterable[TrialRecord]) -> Iterator[TrialRecord]:
        """Those inside the quality gate, in their order; measures the KV types of no more than are taken."""
        return (record for record in records if self.gate.admits(record.config).passed)

    @property
    def screening_noise(self) -> float:
        """By how much two single trials of equal configurations may well differ, relatively."""
        known = self.noise.of_one if self.noise else 0.0
        return max(_SCREENING_NOISE, _STANDARD_ERRORS * math.sqrt(2) * known)

    def stalls(self, looks: Sequence[TrialRecord]) -> bool:
        """Whether by these measurements of one configuration its slow tokens are slower than the best baseline's,
        beyond margin and noise: a race would not promote it.
        """
        baseline = self.best_baseline
        slow_s = [record.measurement.slow_token_s for record in looks if record.measurement]
        if baseline is None or not slow_s:
            return False
        same = [r.measurement.slow_token_s for r in self.study.records if r.config == baseline.config and r.measurement]
        bar_s = (1 + self.request.rules.margin) * (1 + self.screening_noise) * geometric_mean(same)
        return geometric_mean(slow_s) > bar_s

    def find(self, config: EngineConfig) -> TrialRecord | None:
        """An earlier trial of exactly this configuration, in this search or the one it resumes."""
        self.catch_up()
        return next((record for record in self.study.records if record.config == config), None)

    @property
    def longest_s(self) -> float:
        """The whole allowance: for what must be measured however slow it is."""
        return allowance_s(self.request.longest_trial_s, self.space.model)

    def time_left_s(self) -> float:
        """Of the budget; infinite without one."""
        budget_s = self.request.budget_s
        return math.inf if budget_s is None else budget_s - (self.clock() - self.began_s)

    def usual_trial_s(self) -> float:
        """What a trial has cost so far, a load now and then included; 0 before the first."""
        return median([record.wall_s for record in self.study.records if record.measurement] or [0.0])

    def time_limit_s(self) -> float:
        """A multiple of the incumbent's wall time; the whole allowance until there is one."""
        longest = self.longest_s
        incumbent = self.best
        if incumbent is None or incumbent.measurement is None:
            return longest
        load_s = max((r.measurement.load_s for r in self.study.records if r.measurement), default=0.0)
        fair = self.request.incumbent_factor * (incumbent.wall_s + load_s)
        return min(longest, max(self.request.shortest_limit_s, fair))

    def evaluate(self, config: EngineConfig, origin: Origin, name: str = "") -> TrialRecord:
        """Measure `config`, unless it cannot fit or another worker is at it, and tell the study."""
        claimed = self.study.claim(self.space.params_of(config, self.memory), config, origin)
        self.catch_up()
        return claimed if isinstance(claimed, TrialRecord) else self.run(claimed, config, origin, name)

    def run(self, number: int, config: EngineConfig, origin: Origin, name: str = "") -> TrialRecord:
        """Measure `config` as the trial already asked for under `number`."""
        fast_excess, host_excess = self.memory.excess_bytes(config)
        if self.request.allow_overcommit:
            host_excess = min(host_excess, 0)
        self.events.trial_started(origin, name, config)
        started = self.clock()
        outcome: Outcome
        known = self.gate.known(config)
        try:
            if known is not None and not known.passed:
                outcome = NotLaunched(fast_excess, host_excess, known.reason)
            elif (fast_excess > 0 or host_excess > 0) and not self._has_run(config):
                outcome = NotLaunched(fast_excess, host_excess)
            else:
                limit_s = self.longest_s if origin is Origin.BASELINE else self.time_limit_s()
                outcome = self.measure(config, limit_s)
            wall_s = self.clock() - started
        except BaseException:
            self.study.abandon(number, "interrupted")
            raise
        bad_quality, stopped = False, None
        try:
            bad_quality = self._is_bad(config, outcome)
        except BaseException as error:
            # The trial itself is measured, and kept.
            stopped = error
        record = TrialRecord(
            number=number,
            origin=origin,
            name=name,
            config=config,
            outcome=outcome,
            turn_s=self.turn_s(outcome),
            wall_s=wall_s,
            fast_excess_bytes=fast_excess,
            host_excess_bytes=host_excess,
            bad_quality=bad_quality,
        )
        self.study.tell(record)
        self.catch_up()
        self.events.trial_finished(record, self.best, self.best_baseline)
        if stopped is not None:
            raise stopped
        return record

    def _is_bad(self, config: EngineConfig, outcome: Outcome) -> bool:
        """Whether its KV types are outside the gate: asked when a trial takes the lead, before the sampler follows."""
        turn_s, best = self.turn_s(outcome), self.best
        leads = turn_s is not None and (best is None or best.turn_s is None or turn_s < best.turn_s)
        if leads and self.time_left_s() > 0:
            return not self.gate.admits(config).passed
        report = self.gate.known(config)
        return report is not None and not report.passed

    def _has_run(self, config: EngineConfig) -> bool:
        """What ran once fits, whatever a prediction that has learnt since says."""
        return any(record.config == config and record.measurement for record in self.study.records)

    def measure(self, config: EngineConfig, time_limit_s: float) -> Measurement | Failed:
        """One fresh measurement, not recorded; a result without usable numbers is a failure too."""
        return usable(self.runner.measure(config, self.trace, passes=self.request.passes, time_limit_s=time_limit_s))

    def turn_s(self, outcome: Outcome) -> float | None:
        """The objective: seconds for one request of the measured shape."""
        if not isinstance(outcome, Measurement):
            return None
        return self.turn_of(outcome)

    def turn_of(self, measured: Measurement) -> float:
        """The same of a measurement."""
        return measured.turn_s(len(self.trace.prompt_tokens), len(self.trace.reply_tokens))

    def _learn(self, config: EngineConfig, outcome: Outcome) -> None:
        # A trial that held fewer slots than planned says nothing about what the plan would have cost.
        planned = config.cache.slots if config.cache is not None else 0
        spread = config.cache is not None and config.cache.budget_bytes > 0
        if isinstance(outcome, Measurement) and outcome.slots == planned and not spread:
            self.memory = self.memory.observe(config, outcome.fast_bytes)
            self.cost = replace(self.cost, memory=self.memory).observe(config, outcome)


def allowance_s(longest_trial_s: float, model: Model) -> float:
    """The most that one measurement may take, with the time to read the model from a slow disk."""
    return longest_trial_s + model.file_bytes / _SLOWEST_LOAD_BYTES_S


def usable(outcome: Measurement | Failed) -> Measurement | Failed:
    """The same, but a measurement without timings is a failure."""
    if isinstance(outcome, Measurement) and not outcome.has_timings:
        return Failed(FailureReason.DECODE_FAILED, "the engine returned no timings")
    return outcome


def fastest_baseline(records: list[TrialRecord]) -> TrialRecord | None:
    """By each one's middle look, of two the better: neither one disturbed look nor a lucky one decides."""
    looks: dict[EngineConfig, list[tuple[float, int, TrialRecord]]] = {}
    for record in records:
        if record.origin is Origin.BASELINE and record.turn_s is not None:
            looks.setdefault(record.config, []).append((record.turn_s, record.number, record))
    return fastest([sorted(of_one)[(len(of_one) - 1) // 2][2] for of_one in looks.values()])


def fastest(records: list[TrialRecord]) -> TrialRecord | None:
    """The measured record with the shortest turn, None when nothing was measured."""
    measured = [(record.turn_s, record.number, record) for record in records if record.turn_s is not None]
    return min(measured)[2] if measured else None
