"""The policies that are compared: each spends trials on a landscape and in the end chooses a configuration.

All measure through the same recording, in the same space, and see only what it answers. What is inside the quality
gate they are told for nothing. moetune's arm is the product's own `search`. The others are policies as their authors
describe them, written anew for this space, which also lets them try the cache; none of their code is here.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import optuna
from landscapes import DEVICE, LANDSCAPES, Landscape, Recorded, Recording, Replay, turn_s
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from moetune.autotune.baselines import offloads
from moetune.autotune.events import Silent
from moetune.autotune.knobs import Choice
from moetune.autotune.memory import MemoryModel, memory_of
from moetune.autotune.record import Origin
from moetune.autotune.search import search
from moetune.autotune.space import Space, build_space
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement
from moetune.hardware.conditions import Conditions

TRIALS = 60
_STARTUP_TRIALS = 6


@dataclass(frozen=True)
class Step:
    """One trial: the engine's seconds so far, what was measured, and the configuration the arm would choose now."""

    engine_s: float
    measured: EngineConfig
    choice: EngineConfig | None


@dataclass(frozen=True)
class Outcome:
    """One arm on one landscape with one seed. chosen: None where it found nothing that runs. baseline: the fastest in
    truth of those measured; None where an arm has none.
    """

    steps: tuple[Step, ...]
    chosen: EngineConfig | None
    baseline: EngineConfig | None
    out_of_memory: int
    named_winner: bool


@dataclass(frozen=True)
class World:
    """A recording as a policy meets it."""

    landscape: Landscape
    recording: Recording
    space: Space
    memory: MemoryModel

    @staticmethod
    def of(recording: Recording) -> "World":
        landscape = next(entry for entry in LANDSCAPES if entry.name == recording.name)
        memory = memory_of(recording.model, recording.machine, DEVICE)
        request = landscape.request(Path())
        return World(landscape, recording, build_space(recording.model, recording.machine.cpu, memory, request), memory)


Arm = Callable[[World, int], Outcome]
Score = Callable[[Measurement], float]


def moetune(world: World, seed: int) -> Outcome:
    """The product: cost model, live trials, race."""
    return _searched(world, Replay(world.recording, seed), seed)


def moetune_cold(world: World, seed: int) -> Outcome:
    """The same with a process of its own for every trial."""
    return _searched(world, _Cold(world.recording, seed), seed)


def moetune_alike(world: World, seed: int) -> Outcome:
    """A search where every configuration is as fast as every other."""
    return _searched(world, _Alike(world.recording, seed), seed)


def tpe(world: World, seed: int) -> Outcome:
    """Optuna's TPE over the whole space; what fails is pruned; the best single measurement wins."""
    return _sampled(world, seed, TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS))


def tpe_cold(world: World, seed: int) -> Outcome:
    """The same with a process of its own for every trial."""
    return _sampled(world, seed, TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS), cold=True)


def gaussian_process(world: World, seed: int) -> Outcome:
    """Optuna's Gaussian process (needs PyTorch)."""
    return _sampled(world, seed, optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS))


def random_search(world: World, seed: int) -> Outcome:
    """Uniform."""
    return _sampled(world, seed, RandomSampler(seed=seed))


def fit(world: World, seed: int) -> Outcome:
    """llama.cpp's --fit: as many layers on the device as memory allows; measures nothing."""
    replay = Replay(world.recording, seed)
    fitting = [config for config in offloads(world.space) if world.memory.fits_fast(config)]
    config = fitting[0] if fitting else world.space.default
    measured = replay.measure(config, world.recording.trace, passes=1, time_limit_s=math.inf)
    chosen = replay.measured[-1] if isinstance(measured, Measurement) else None
    return Outcome(
        (Step(replay.engine_s, replay.measured[-1], chosen),), chosen, None, replay.out_of_memory, named_winner=True
    )


def llama_optimus(world: World, seed: int) -> Outcome:
    """TPE by the mean of pp and tg; an exception scores 0.0."""
    sampler = TPESampler(seed=seed)
    return _sampled(world, seed, sampler, score=lambda m: -(m.pp_tps + m.tg_tps) / 2, failed=0.0, cold=True)


def llama_dyno(world: World, seed: int) -> Outcome:
    """Hill climbing by 0.3 pp + 0.7 tg, each step from the last trial, not from the best."""
    return _walked(world, seed, score=lambda m: -(0.3 * m.pp_tps + 0.7 * m.tg_tps), margin=0.0, from_last=True)


def ggrun(world: World, seed: int) -> Outcome:
    """Proposals near the best, accepted when 1 % faster in one request and in one confirmation."""
    return _walked(world, seed, score=turn_s, margin=0.01, from_last=False)


ARMS: dict[str, Arm] = {
    "moetune": moetune,
    "TPE": tpe,
    "GP": gaussian_process,
    "random": random_search,
    "--fit": fit,
    "llama-optimus": llama_optimus,
    "llama-dyno": llama_dyno,
    "ggrun": ggrun,
}


class _Cold(Replay):
    def measure(self, config, trace, *, passes, time_limit_s):  # type: ignore[no-untyped-def]  # as its parent
        self.close()
        return super().measure(config, trace, passes=passes, time_limit_s=time_limit_s)


class _Alike(Replay):
    """Whatever is measured is one configuration: the A/A comparison of the benchmark."""

    def point_of(self, config: EngineConfig) -> Recorded:
        point = super().point_of(config)
        return replace(point, starts=self._reference.starts) if math.isfinite(point.true_turn_s) else point

    @property
    def _reference(self) -> Recorded:
        stock = [p for p in self.recording.points if p.config.cache is None and math.isfinite(p.true_turn_s)]
        return min(stock, key=lambda p: p.true_turn_s)


def still() -> Conditions:
    """Recorded samples are what they are: nothing disturbs a replay."""
    return Conditions(0.0, 0.0, 0.0, 1, None, False, 0, 0, 1 << 40, 1 << 40, ())


def _searched(world: World, replay: Replay, seed: int) -> Outcome:
    watched = _Watched(replay)
    with tempfile.TemporaryDirectory() as folder:
        request = world.landscape.request(Path(folder), n_trials=TRIALS, seed=seed, hits=world.recording.hits)
        result = search(request, watched, world.recording.machine, world.recording.model, Silent(), still)
    verdict = result.verdict
    baselines = [record.config for record in result.records if record.origin is Origin.BASELINE]
    best = min(baselines, key=lambda config: world.recording.nearest(config).true_turn_s)
    return Outcome(tuple(watched.steps), verdict.config, best, replay.out_of_memory, verdict.proven)


class _Watched:
    """The runner, and what was best after each new configuration."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._best_s = math.inf
        self._choice: EngineConfig | None = None
        self._seen: set[EngineConfig] = set()
        self.steps: list[Step] = []

    def close(self) -> None:
        self._replay.close()

    def tokenize(self, text: str) -> tuple[int, ...]:
        return self._replay.tokenize(text)

    def score(self, base, others, passage, *, time_limit_s):  # type: ignore[no-untyped-def]  # as Scorer's
        return self._replay.score(base, others, passage, time_limit_s=time_limit_s)

    def measure(self, config, trace, *, passes, time_limit_s):  # type: ignore[no-untyped-def]  # as Runner's
        outcome = self._replay.measure(config, trace, passes=passes, time_limit_s=time_limit_s)
        point = self._replay.measured[-1]
        admitted = self._replay.recording.admits(point)
        if isinstance(outcome, Measurement) and admitted and turn_s(outcome) < self._best_s:
            self._best_s, self._choice = turn_s(outcome), point
        if config not in self._seen:
            self._seen.add(config)
            self.steps.append(Step(self._replay.engine_s, point, self._choice))
        return outcome


def _sampled(
    world: World,
    seed: int,
    sampler: BaseSampler,
    *,
    score: Score = turn_s,
    failed: float | None = None,
    cold: bool = False,
) -> Outcome:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    replay = (_Cold if cold else Replay)(world.recording, seed)
    study = optuna.create_study(sampler=sampler)
    steps: list[Step] = []
    best = (math.inf, None)
    while len(steps) < TRIALS:
        trial = study.ask(world.space.distributions)
        config = world.space.config_of(trial.params, world.memory)
        outcome = replay.measure(config, world.recording.trace, passes=1, time_limit_s=math.inf)
        if isinstance(outcome, Measurement) and world.recording.admits(replay.measured[-1]):
            value = score(outcome)
            study.tell(trial, value)
            best = min(best, (value, replay.measured[-1]), key=lambda pair: pair[0])
        elif isinstance(outcome, Failed) and failed is not None:
            study.tell(trial, failed)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        steps.append(Step(replay.engine_s, replay.measured[-1], best[1]))
    return Outcome(tuple(steps), best[1], None, replay.out_of_memory, named_winner=True)


def _walked(world: World, seed: int, *, score: Score, margin: float, from_last: bool) -> Outcome:
    """One knob at a time to a neighbouring value, a process a trial; with a margin, a gain is confirmed once."""
    source, replay = Random(seed), _Cold(world.recording, seed)
    here = world.space.params_of(world.space.default, world.memory)
    best_value, best_params, best_config = math.inf, here, None
    steps: list[Step] = []
    while len(steps) < TRIALS:
        config = world.space.config_of(here, world.memory)
        values: list[float] = []
        while not values or (len(values) == 1 and margin and best_config and _clears(values[0], best_value, margin)):
            outcome = replay.measure(config, world.recording.trace, passes=1, time_limit_s=math.inf)
            usable = isinstance(outcome, Measurement) and world.recording.admits(replay.measured[-1])
            values.append(score(outcome) if isinstance(outcome, Measurement) and usable else math.inf)
        if _clears(max(values), best_value, margin):
            best_value, best_params, best_config = max(values), here, replay.measured[-1]
        steps.append(Step(replay.engine_s, replay.measured[-1], best_config))
        here = _neighbour(world.space, here if from_last else best_params, source)
    return Outcome(tuple(steps), best_config, None, replay.out_of_memory, named_winner=True)


def _clears(value: float, best: float, margin: float) -> bool:
    """Smaller is better; scores that are negated speeds keep their sign."""
    return value < best - margin * abs(best) if math.isfinite(best) else math.isfinite(value)


def _neighbour(space: Space, params: Mapping[str, Choice], source: Random) -> dict[str, Choice]:
    knob = source.choice([knob for knob in space.knobs if len(knob.choices) > 1])
    at = knob.choices.index(knob.decode(params[knob.name]))
    steps = [at + d for d in (-1, 1) if 0 <= at + d < len(knob.choices)] if knob.ordered else range(len(knob.choices))
    return {**params, knob.name: knob.encode(knob.choices[source.choice(list(steps))])}
