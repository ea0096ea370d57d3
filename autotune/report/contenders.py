"""Who was compared with whom: the baselines, the finalists, and every measurement of each."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from moetune.autotune.evaluate import fastest
from moetune.autotune.race import ROUND, Arm, Race, Round, Rules, Run, settled
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.shelf import StoredStudy
from moetune.autotune.verdict import figures_of
from moetune.autotune.words import describe
from moetune.engine.config import EngineConfig
from moetune.profiles.schema import Figures


@dataclass(frozen=True)
class Contender:
    """One configuration. name: the baseline's, or "finalist 1"; words: its settings.

    trials, runs: its measurements while searching, and side by side. arm: how a finalist came out, None for baselines.
    failure: why nothing was measured.
    """

    name: str
    words: str
    config: EngineConfig
    is_baseline: bool
    trials: tuple[TrialRecord, ...]
    runs: tuple[Run, ...]
    arm: Arm | None
    is_incumbent: bool
    failure: str | None

    @property
    def turns_s(self) -> tuple[float, ...]:
        """Of the side-by-side where there was one: a trial that was chosen for its figure flatters."""
        return tuple(run.turn_s for run in self.runs) or tuple(t.turn_s for t in self.trials if t.turn_s is not None)

    @property
    def figures(self) -> Figures | None:
        """Medians of the same measurements."""
        measured = [run.measurement for run in self.runs] or [t.measurement for t in self.trials if t.measurement]
        return figures_of(measured, list(self.turns_s)) if measured else None


@dataclass(frozen=True)
class Comparison:
    """Everyone who was compared, baselines first. damaged: rounds that could not be read."""

    contenders: tuple[Contender, ...]
    race: Race | None
    damaged: int

    @property
    def incumbent(self) -> Contender | None:
        """The baseline that the finalists raced."""
        return next((contender for contender in self.contenders if contender.is_incumbent), None)

    @property
    def finalists(self) -> tuple[Contender, ...]:
        """Those that are no baselines."""
        return tuple(contender for contender in self.contenders if not contender.is_baseline)


def comparison_of(study: StoredStudy) -> Comparison:
    """Baselines and finalists of a study; without a race the fastest other trial stands for the finalists."""
    rounds, damaged = _rounds(study.blocks)
    baselines = _baselines(study.records)
    race = settled(rounds, Rules())
    known = [entry for entry in rounds if entry.disturbed is None]
    contenders = [_baseline(record, study, known, race) for record in baselines]
    contenders += [_finalist(at, config, arm, study, known) for at, (config, arm) in enumerate(_others(study, race), 1)]
    return Comparison(tuple(contenders), race, damaged)


def _rounds(blocks: Iterable[str]) -> tuple[list[Round], int]:
    rounds, damaged = [], 0
    for block in blocks:
        try:
            rounds.append(ROUND.validate_json(block))
        except ValidationError:
            damaged += 1
    return rounds, damaged


def _baselines(records: list[TrialRecord]) -> list[TrialRecord]:
    """The fastest of each name; one that failed where none ran."""
    named = [record for record in records if record.origin is Origin.BASELINE]
    families = [[record for record in named if record.name == name] for name in dict.fromkeys(r.name for r in named)]
    return [fastest(family) or family[-1] for family in families]


def _others(study: StoredStudy, race: Race | None) -> list[tuple[EngineConfig, Arm | None]]:
    if race is not None:
        return [(arm.config, arm) for arm in race.arms]
    best = fastest([record for record in study.records if record.origin is not Origin.BASELINE])
    return [(best.config, None)] if best is not None else []


def _baseline(record: TrialRecord, study: StoredStudy, rounds: list[Round], race: Race | None) -> Contender:
    return Contender(
        name=record.name,
        words=describe(record.config, study.identity.n_layers),
        config=record.config,
        is_baseline=True,
        trials=_trials(study, record.config),
        runs=_runs(rounds, record.config),
        arm=None,
        is_incumbent=race is not None and race.incumbent == record.config,
        failure=record.failure,
    )


def _finalist(number: int, config: EngineConfig, arm: Arm | None, study: StoredStudy, rounds: list[Round]) -> Contender:
    return Contender(
        name=f"finalist {number}" if arm is not None else "best other trial",
        words=describe(config, study.identity.n_layers),
        config=config,
        is_baseline=False,
        trials=_trials(study, config),
        runs=_runs(rounds, config),
        arm=arm,
        is_incumbent=False,
        failure=arm.detail or None if arm is not None else None,
    )


def _trials(study: StoredStudy, config: EngineConfig) -> tuple[TrialRecord, ...]:
    return tuple(record for record in study.records if record.config == config and record.turn_s is not None)


def _runs(rounds: list[Round], config: EngineConfig) -> tuple[Run, ...]:
    return tuple(run for entry in rounds for run in entry.runs if entry.contenders[run.arm] == config)
