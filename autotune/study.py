"""The study on disk: Optuna asks and is told here, and nowhere else."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.trial import Trial, TrialState
from pydantic import ValidationError

from moetune.autotune.journal import exclusive, move_corrupt_aside, open_journal
from moetune.autotune.record import RECORD, TrialRecord, to_optuna
from moetune.autotune.space import Params, Space

_RECORD_ATTR = "record"

_REASON_ATTR = "abandoned"
_BLOCK_ATTR = "race-round-"
_RANDOM_TRIALS = 6


def study_key(*parts: str | int) -> str:
    """The study's name: the same for the same model, machine, engine, context, workload and space."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:24]


class Study:
    """Ask for a point, tell its record. Everything told survives the process."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study = study
        self._space = space
        self._open: dict[int, Trial] = {}
        finished = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if _RECORD_ATTR in trial.user_attrs and trial.state.is_finished()
        ]
        # Trials asked for together are run in another order.
        finished.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
        self.records = [RECORD.validate_json(trial.user_attrs[_RECORD_ATTR]) for trial in finished]

    def ask(self, params: Params | None = None) -> tuple[int, dict[str, int | float | str | bool]]:
        """A new trial's number and its point: `params` when given, else the sampler's choice."""
        if params is not None:
            self._study.enqueue_trial(dict(params))
        trial = self._study.ask(self._space.distributions)
        self._open[trial.number] = trial
        return trial.number, dict(trial.params)

    def tell(self, record: TrialRecord) -> None:
        """Store a finished trial: configuration, raw samples and outcome first, then what the sampler learns."""
        trial = self._open.pop(record.number)
        trial.set_user_attr(_RECORD_ATTR, RECORD.dump_json(record).decode())
        self._settle(trial, record)
        self.records.append(record)

    def _settle(self, trial: Trial, record: TrialRecord) -> None:
        outcome = to_optuna(record)
        for key, value in outcome.constraints.items():
            trial.set_constraint(key, value)
        self._study.tell(trial, outcome.value, state=outcome.state)

    def repeat(self, number: int, known: TrialRecord) -> None:
        """The sampler proposed a configuration already tried: it learns the known outcome, nothing is run."""
        self._settle(self._open.pop(number), known)

    def abandon(self, number: int, reason: str) -> None:
        """A trial that ended without an outcome of its own."""
        trial = self._open.pop(number)
        trial.set_user_attr(_REASON_ATTR, reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def keep_block(self, block_json: str) -> None:
        """Keep the raw samples of one round of a race."""
        self._study.set_user_attr(f"{_BLOCK_ATTR}{len(self.blocks):04d}", block_json)

    @property
    def blocks(self) -> list[str]:
        """Every block kept so far, as JSON, oldest first."""
        attrs = self._study.user_attrs
        return [attrs[key] for key in sorted(attrs) if key.startswith(_BLOCK_ATTR)]


@contextmanager
def open_study(state_dir: Path, key: str, space: Space, seed: int) -> Iterator[Study]:
    """Lock, open and repair the study; MoetuneError (BUSY, STORAGE) when that cannot be."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = state_dir / f"{key}.journal"
    with exclusive(state_dir / f"{key}.busy"):
        storage = open_journal(path)
        try:
            study = _load(storage, key, space, seed)
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise move_corrupt_aside(path, error) from None
        yield study


def _load(storage: JournalStorage, key: str, space: Space, seed: int) -> Study:
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    names = [known.study_name for known in storage.get_all_studies()]
    done = 0
    if key in names:
        study_id = storage.get_study_id_from_name(key)
        done = storage.get_n_trials(study_id)
        for trial in storage.get_all_trials(study_id, deepcopy=False, states=unfinished):
            # We hold the lock, so whoever ran it is dead.
            storage.set_trial_user_attr(trial._trial_id, _REASON_ATTR, "the search that ran it ended before it did")
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    # Another seed after a resume, or the sampler would repeat its first proposals.
    sampler = TPESampler(seed=seed + done, n_startup_trials=_RANDOM_TRIALS)
    study = optuna.create_study(
        storage=storage, sampler=sampler, study_name=key, direction="minimize", load_if_exists=True
    )
    return Study(study, space)
