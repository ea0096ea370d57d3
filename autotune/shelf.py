"""Every study that is remembered, read without disturbing whoever is at work on it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, TypeAdapter, ValidationError

from moetune.autotune.claim import Purpose, claim_of
from moetune.autotune.database import Database
from moetune.autotune.evaluate import fastest
from moetune.autotune.heart import Heart
from moetune.autotune.identity import IDENTITY, StudyIdentity
from moetune.autotune.journal import exclusive
from moetune.autotune.knobs import Choice
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.study import (
    BLOCK_ATTR,
    REASON_ATTR,
    RECORD_ATTR,
    VERDICT_ATTR,
    UnreadableRecord,
    read_record,
)
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import VERDICT, Key, SavedVerdict

IDENTITY_ATTR = "identity"
KNOBS_ATTR = "knobs"
Wanted = Callable[[StudyIdentity], bool]
Knobs = Mapping[str, tuple[Choice, ...]]
_KNOBS: TypeAdapter[Knobs] = TypeAdapter(dict[Key, Annotated[tuple[Choice, ...], Field(max_length=4096)]])
_NAME = re.compile("[0-9a-f]{24}")


@dataclass(frozen=True)
class StoredTrial:
    """One trial as kept. state: optuna's, in lower case. remark: why it has no record. Times are local.

    params: the point of the space, in the values that its knobs name.
    """

    number: int
    state: str
    worker: str
    origin: Origin | None
    record: TrialRecord | None
    remark: str
    constraints: Mapping[str, float]
    began: datetime | None
    ended: datetime | None
    params: Mapping[str, Choice]


@dataclass(frozen=True)
class StoredStudy:
    """One study as kept. blocks: raw samples of the side-by-side, as JSON.

    verdict: what its last whole search came to, None before that.
    """

    key: str
    identity: StudyIdentity
    trials: tuple[StoredTrial, ...]
    blocks: tuple[str, ...]
    verdict: SavedVerdict | None

    @property
    def records(self) -> list[TrialRecord]:
        """Every finished trial, in the order of the study."""
        return [trial.record for trial in self.trials if trial.record is not None]

    @property
    def best(self) -> TrialRecord | None:
        """The fastest trial, baselines included."""
        return fastest(self.records)

    @property
    def last_at(self) -> datetime | None:
        """When its last trial ended or began."""
        return max((at for trial in self.trials if (at := trial.ended or trial.began) is not None), default=None)


@dataclass(frozen=True)
class Shelf:
    """Studies, the latest first, and what could not be read."""

    studies: tuple[StoredStudy, ...]
    unusable: tuple[MoetuneError, ...]

    def find(self, prefix: str) -> StoredStudy:
        """The one study whose name begins so; MoetuneError (USAGE) when there is none or more than one."""
        found = [study for study in self.studies if study.key.startswith(prefix.lower())]
        if len(found) == 1 and prefix:
            return found[0]
        if not found:
            raise MoetuneError(
                f"There is no study {prefix!r}.", "`moetune study list` names those there are.", ExitCode.USAGE
            )
        raise MoetuneError(
            f"{prefix!r} begins the names of {len(found)} studies.",
            f"Write more of it: {', '.join(study.key[: len(prefix) + 4] for study in found[:4])}.",
            ExitCode.USAGE,
        )


class Studies(Protocol):
    """The studies of one place."""

    def read(self, wanted: Wanted = lambda identity: True) -> Shelf:
        """All that are wanted; MoetuneError (STORAGE) when the place itself cannot be read."""

    def drop(self, key: str) -> None:
        """Delete one for good; MoetuneError (BUSY) while a search is at work on it."""


def studies_of(state_dir: Path, database: Database | None) -> Studies:
    """Where `moetune search` with the same `--storage` keeps them."""
    return Journals(state_dir) if database is None else Tables(database)


@dataclass(frozen=True)
class Journals:
    """This machine's own studies, a file each."""

    folder: Path

    def read(self, wanted: Wanted = lambda identity: True) -> Shelf:
        """A file that another search is writing is read up to its last whole line; a damaged one is left as it is."""
        studies: list[StoredStudy] = []
        unusable: list[MoetuneError] = []
        for path in sorted(self.folder.glob("*.journal")):
            try:
                inside = read_studies(JournalStorage(JournalFileBackend(str(path))), wanted)
                studies += [study for study in inside if study.key == path.stem]
            except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
                why = str(error)[:120] or type(error).__name__
                unusable.append(
                    MoetuneError(
                        f"The study in {path} cannot be read: {why}.", "It was left as it is.", ExitCode.STORAGE
                    )
                )
        return _sorted(studies, unusable)

    def drop(self, key: str) -> None:
        """The lock's file stays: another search may be about to take it."""
        path = self.folder / f"{key}.journal"
        with exclusive(self.folder / f"{key}.busy"):
            try:
                path.unlink()
            except OSError as error:
                raise MoetuneError(
                    f"The study {path} cannot be deleted: {error.strerror or error}.",
                    "Check who may write to its folder.",
                    ExitCode.STORAGE,
                ) from None


@dataclass(frozen=True)
class Tables:
    """The studies in a database."""

    database: Database

    def read(self, wanted: Wanted = lambda identity: True) -> Shelf:
        """Studies of other programs that use optuna are passed over."""
        from moetune.autotune.postgres import look_into, reported

        storage = look_into(self.database)
        if storage is None:
            return Shelf((), ())
        with reported(self.database):
            return _sorted(read_studies(storage, wanted), [])

    def drop(self, key: str) -> None:
        """Refused while a worker gives signs of life."""
        from moetune.autotune.postgres import open_postgres, reported

        storage = open_postgres(self.database)
        with reported(self.database):
            study = optuna.load_study(study_name=key, storage=storage)
            running = (TrialState.RUNNING,)
            Heart(storage, self.database.heartbeat_s).bury(study, study.get_trials(False, running))
            if study.get_trials(False, running):
                raise MoetuneError(
                    "Machines are at work on this study.",
                    f"Stop them first; one that died is known to be dead {self.database.grace_s} s later.",
                    ExitCode.BUSY,
                )
            optuna.delete_study(study_name=key, storage=storage)


def identity_in(attributes: Mapping[str, Any]) -> StudyIdentity | None:
    """The identity a study carries; None for one that is not moetune's."""
    try:
        return IDENTITY.validate_json(attributes[IDENTITY_ATTR])
    except (KeyError, ValidationError):
        return None


def read_studies(storage: BaseStorage, wanted: Wanted) -> list[StoredStudy]:
    """moetune's own studies in the storage; only the trials of those that are wanted are read."""
    found = []
    for known in storage.get_all_studies():
        identity = identity_in(known.user_attrs)
        if identity is not None and _NAME.fullmatch(known.study_name) and wanted(identity):
            trials = storage.get_all_trials(known._study_id, deepcopy=False)
            blocks = tuple(str(t.user_attrs[BLOCK_ATTR]) for t in trials if BLOCK_ATTR in t.user_attrs)
            knobs = _knobs_in(known.user_attrs)
            shown = tuple(_stored(trial, knobs) for trial in trials if _is_trial(trial))
            verdict = _verdict_in(known.user_attrs)
            found.append(StoredStudy(known.study_name, identity, shown, blocks, verdict))
    return found


def _verdict_in(attributes: Mapping[str, Any]) -> SavedVerdict | None:
    try:
        return VERDICT.validate_json(attributes[VERDICT_ATTR])
    except (KeyError, ValidationError):
        return None


def _knobs_in(attributes: Mapping[str, Any]) -> Knobs:
    try:
        return _KNOBS.validate_python(attributes[KNOBS_ATTR])
    except (KeyError, ValidationError):
        return {}


def _is_trial(trial: FrozenTrial) -> bool:
    claim = claim_of(trial)
    return BLOCK_ATTR not in trial.user_attrs and (claim is None or claim.purpose is Purpose.TRIAL)


def _stored(trial: FrozenTrial, knobs: Knobs) -> StoredTrial:
    claim = claim_of(trial)
    record, remark = None, str(trial.user_attrs.get(REASON_ATTR, ""))[:200]
    if RECORD_ATTR in trial.user_attrs and trial.state.is_finished():
        try:
            record = read_record(trial)
        except UnreadableRecord as error:
            remark = str(error)
    elif trial.state is TrialState.FAIL and not remark:
        remark = "the worker died"
    return StoredTrial(
        number=trial.number,
        state=trial.state.name.lower(),
        worker=claim.worker if claim else "",
        origin=claim.origin if claim else None,
        record=record,
        remark=remark,
        constraints=trial.constraints,
        began=trial.datetime_start,
        ended=trial.datetime_complete,
        params={name: _chosen(trial, name, knobs) for name in trial.params},
    )


def _chosen(trial: FrozenTrial, name: str, knobs: Knobs) -> Choice:
    value, choices = trial.params[name], knobs.get(name, ())
    is_place = isinstance(trial.distributions[name], IntDistribution) and 0 <= value < len(choices)
    chosen: Choice = choices[value] if is_place else value
    return chosen


def _sorted(studies: list[StoredStudy], unusable: list[MoetuneError]) -> Shelf:
    latest_first = sorted(studies, key=lambda s: (s.last_at or datetime.min, s.key), reverse=True)
    return Shelf(tuple(latest_first), tuple(unusable))
