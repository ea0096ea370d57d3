"""Opens the study of a search: a journal of this machine, or a database that identical machines share."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moetune.autotune.claim import Purpose, claim_of, this_worker
from moetune.autotune.database import Database
from moetune.autotune.heart import Heart
from moetune.autotune.identity import IDENTITY, StudyIdentity
from moetune.autotune.journal import exclusive, move_corrupt_aside, open_journal
from moetune.autotune.outbox import Outbox
from moetune.autotune.shelf import IDENTITY_ATTR, KNOBS_ATTR, identity_in
from moetune.autotune.space import Space
from moetune.autotune.study import REASON_ATTR, RECORD_ATTR, Others, Study, UnreadableRecord
from moetune.errors import ExitCode, MoetuneError

# A configuration whose workers died this often is left alone: it may be what kills them.
_MOST_RETRIES = 3
SamplerOf = Callable[[int], BaseSampler]


@contextmanager
def open_study(
    state_dir: Path,
    identity: StudyIdentity,
    space: Space,
    sampler_of: SamplerOf,
    database: Database | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Study]:
    """Open the study, made where there is none.

    sampler_of: given a number to add to its seed. note: told what is waited for, and whom this worker joins.
    Raises MoetuneError (BUSY, STORAGE) when that cannot be, also later, when the database fails: what was measured by
    then is kept. One worker a machine: two would disturb each other's timing.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with exclusive(state_dir / f"{identity.key}.busy"):
        if database is None:
            yield _alone(state_dir / f"{identity.key}.journal", identity, space, sampler_of)
        else:
            outbox = Outbox(state_dir / f"{identity.key}.unsent")
            with _shared(database, outbox, identity, space, sampler_of, note) as study:
                yield study


def _alone(path: Path, identity: StudyIdentity, space: Space, sampler_of: SamplerOf) -> Study:
    storage = open_journal(path)
    try:
        _fail_unfinished(storage, identity.key)
        return Study(_load(storage, identity, space, sampler_of), space, this_worker())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise move_corrupt_aside(path, error) from None


def _fail_unfinished(storage: JournalStorage, key: str) -> None:
    """We hold the lock, so whoever ran them is dead."""
    if key not in [known.study_name for known in storage.get_all_studies()]:
        return
    study_id = storage.get_study_id_from_name(key)
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    for trial in storage.get_all_trials(study_id, deepcopy=False, states=unfinished):
        storage.set_trial_user_attr(trial._trial_id, REASON_ATTR, "the search that ran it ended before it did")
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


@contextmanager
def _shared(
    database: Database,
    outbox: Outbox,
    identity: StudyIdentity,
    space: Space,
    sampler_of: SamplerOf,
    note: Callable[[str], None],
) -> Iterator[Study]:
    from moetune.autotune.postgres import open_postgres, reported

    storage = open_postgres(database, _hand_on)
    remedy = "The same command goes on from there; what was measured is kept."
    # optuna expects its own loop to send the signs of life; here the heart does.
    with warnings.catch_warnings(), reported(database, remedy), Heart(storage, database.heartbeat_s) as heart:
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        worker = this_worker()
        try:
            _join(storage, identity, note)
            study = _load(storage, identity, space, lambda done: sampler_of(done + crc32(worker.encode()) % (1 << 30)))
            joined = Study(study, space, worker, Others(heart, outbox, note))
            for unsent in outbox.waiting():
                joined.deliver(unsent)
            outbox.clear()
            yield joined
        except UnreadableRecord as error:
            raise MoetuneError(
                f"The study {identity.key} in {database.shown} cannot be used: {error}.",
                "Use the same version of moetune on every machine, or drop the study (`moetune study drop`).",
                ExitCode.STORAGE,
            ) from None
        finally:
            storage.engine.dispose()


def _join(storage: BaseStorage, identity: StudyIdentity, note: Callable[[str], None]) -> None:
    """Refuse to search beside machines of another kind; say when another engine's study is left alone."""
    others = [(name, known) for name, known in identities_in(storage) if known.same_search(identity)]
    if any(name == identity.key for name, _ in others):
        note("Joining the study of other machines of this kind.")
        return
    for name, known in others:
        if known.machine != identity.machine:
            raise MoetuneError(
                f"The storage holds this search by machines of another kind: {known.machine_label}. "
                f"This one is: {identity.machine_label}.",
                "Measurements of different machines cannot be put together: use a database of its own for each kind, "
                f"or drop the other's study (`moetune study drop {name[:8]}`).",
                ExitCode.STORAGE,
            )
        if known.engine != identity.engine:
            note(f"The storage holds this search by another engine, {known.engine}; this one begins anew.")
        else:
            note("The storage holds this search with another device or other knobs; this one begins its own study.")


def _load(storage: BaseStorage, identity: StudyIdentity, space: Space, sampler_of: SamplerOf) -> optuna.Study:
    study = optuna.create_study(
        storage=storage, study_name=identity.key, direction=StudyDirection.MINIMIZE, load_if_exists=True
    )
    if IDENTITY_ATTR not in study.user_attrs:
        study.set_user_attr(IDENTITY_ATTR, IDENTITY.dump_json(identity).decode())
    if KNOBS_ATTR not in study.user_attrs:
        # Ordered choices are stored by their place among these.
        study.set_user_attr(KNOBS_ATTR, {knob.name: knob.choices for knob in space.knobs})
    # Another seed after a resume, or the sampler would repeat its first proposals.
    study.sampler = sampler_of(len(study.get_trials(deepcopy=False)))
    return study


def _hand_on(study: optuna.Study, trial: FrozenTrial) -> None:
    """A dead worker's trial goes to the next who asks; baselines and turns come round by themselves."""
    claim = claim_of(trial)
    measured = RECORD_ATTR in trial.user_attrs
    if measured or (claim is not None and (claim.comes_round or claim.purpose is Purpose.TURN)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(max_retry=_MOST_RETRIES)(study, trial)


def identities_in(storage: BaseStorage) -> list[tuple[str, StudyIdentity]]:
    """Name and identity of every study of moetune's; what others keep there is passed over."""
    found = [(known.study_name, identity_in(known.user_attrs)) for known in storage.get_all_studies()]
    return [(name, identity) for name, identity in found if identity is not None]
