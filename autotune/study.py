"""The study: Optuna asks and is told here, and nowhere else; other machines may work on the same one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from pydantic import ValidationError

from moetune.autotune.claim import ATTRIBUTE, Claim, Purpose, claim_of, digest_of, is_again
from moetune.autotune.heart import Heart
from moetune.autotune.knobs import Choice
from moetune.autotune.outbox import Outbox, Unsent
from moetune.autotune.record import RECORD, Origin, TrialRecord, to_optuna
from moetune.autotune.space import Params, Space
from moetune.autotune.stored import checked
from moetune.engine.config import EngineConfig
from moetune.profiles.schema import VERDICT, SavedVerdict

RECORD_ATTR = "record"
REASON_ATTR = "abandoned"
BLOCK_ATTR = "block"
VERDICT_ATTR = "verdict"
LONGEST_RECORD = 16 << 20
_NOTE_EVERY_S = 60.0


class UnreadableRecord(ValueError):
    """A trial in the storage is not what this version writes."""


@dataclass(frozen=True)
class Proposal:
    """A running trial to measure. origin: who thought of it first, where a dead worker left it behind."""

    number: int
    params: Params
    origin: Origin


@dataclass(frozen=True)
class Others:
    """How a study is shared: signs of life, and where records wait while the storage is away."""

    heart: Heart
    outbox: Outbox
    note: Callable[[str], None]


class Study:
    """Ask for a point, tell its record. Everything told survives the process.

    records: every finished trial, in the order in which this worker learnt of them; the list only grows. others: None
    where this process is the only worker.
    """

    def __init__(self, study: optuna.Study, space: Space, worker: str, others: Others | None = None) -> None:
        self._study = study
        self._space = space
        self._worker = worker
        self._others = others
        self._open: dict[int, Trial] = {}
        self._known: set[int] = set()
        self.records: list[TrialRecord] = []
        self._collect(study.get_trials(deepcopy=False))

    def refresh(self) -> None:
        """Learn what other workers have finished, and hand on the trials of those that died."""
        if self._others is None:
            return
        self._others.heart.bury(self._study, self._elsewhere())
        self._collect(self._study.get_trials(deepcopy=False))

    def propose(self) -> Proposal:
        """What a dead worker left, else the sampler's choice; to be followed by `take`, `repeat` or `abandon`."""
        trial = self._opened(self._study.ask(self._space.distributions))
        left = claim_of(trial)
        origin = left.origin if left else Origin.SAMPLER
        self._label(trial, Claim(self._worker, Purpose.TRIAL, origin, ""))
        return Proposal(trial.number, dict(trial.params), origin)

    def take(self, number: int, config: EngineConfig) -> bool:
        """Whether this worker may measure `config` as the proposed trial; False while another measures just that."""
        trial = self._open[number]
        claim = claim_of(trial)
        origin = claim.origin if claim else Origin.SAMPLER
        self._label(trial, Claim(self._worker, Purpose.TRIAL, origin, digest_of(config)))
        return not self._rivals(digest_of(config))

    def claim(self, params: Params, config: EngineConfig, origin: Origin) -> int | TrialRecord:
        """The number of a new trial of `config`; while another worker measures just that, wait and take its record."""
        while True:
            rivals = self._rivals(digest_of(config))
            if not rivals:
                number = self._begin(params, Claim(self._worker, Purpose.TRIAL, origin, digest_of(config)))
                # Numbers are given out one after the other: of two that come at the same time the lower one stays.
                rivals = [rival for rival in self._rivals(digest_of(config)) if rival.number < number]
                if not rivals:
                    return number
                self.abandon(number, "another worker measures the same")
            record = self._result_of(rivals[0])
            if record is not None:
                return record

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """A part that one worker does for all: the others wait until it has left or died, and find its work done."""
        if self._others is None:
            yield
            return
        number = self._begin({}, Claim(self._worker, Purpose.TURN, Origin.SAMPLER, name))
        try:
            self._wait(lambda: self._first_before(number, name), f"another worker to finish the {name}")
            yield
        finally:
            self.abandon(number, f"a turn of the {name}")

    @property
    def alone(self) -> bool:
        """Whether no other worker can be at this study."""
        return self._others is None

    @property
    def left_behind(self) -> bool:
        """Whether a dead worker's trial waits for whoever proposes next."""
        waiting = (TrialState.WAITING,)
        return self._others is not None and bool(self._study.get_trials(deepcopy=False, states=waiting))

    @property
    def running_elsewhere(self) -> int:
        """Trials that other workers are measuring now, baselines not counted."""
        return len(self._measuring_elsewhere())

    def runs_elsewhere(self, config: EngineConfig) -> bool:
        """Whether another worker is measuring just that now."""
        return bool(self._rivals(digest_of(config)))

    def wait_for_others(self) -> None:
        """Until one trial fewer runs elsewhere, finished or dead."""
        before = {trial.number for trial in self._measuring_elsewhere()}
        self._wait(
            lambda: bool(before) and before <= {trial.number for trial in self._measuring_elsewhere()},
            "other workers to finish their trials",
        )

    def tell(self, record: TrialRecord) -> None:
        """Store a finished trial: configuration, raw samples and outcome first, then what the sampler learns."""
        trial = self._closed(record.number)
        self._known.add(record.number)
        self.records.append(record)
        self._send(Unsent(record, trial.params, None), lambda: self._store(trial, record))

    def repeat(self, number: int, known: TrialRecord) -> None:
        """The sampler proposed a configuration already tried: it learns the known outcome, nothing is run."""
        trial = self._closed(number)
        try:
            self._settle(trial, known)
        except UpdateFinishedTrialError:
            # Taken for dead by another worker: it has failed already.
            return

    def abandon(self, number: int, reason: str) -> None:
        """A trial that ended without an outcome of its own."""
        trial = self._closed(number)
        try:
            trial.set_user_attr(REASON_ATTR, reason)
            self._study.tell(trial, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            # Taken for dead by another worker: it has failed already.
            return

    def keep_block(self, block_json: str) -> None:
        """Keep the raw samples of one round of a race."""
        self._send(Unsent(None, {}, block_json), lambda: self._add_block(block_json))

    def keep_verdict(self, verdict: SavedVerdict) -> None:
        """Keep what a search of this study came to, in place of what the one before it did."""
        self._study.set_user_attr(VERDICT_ATTR, VERDICT.dump_json(verdict).decode())

    @property
    def blocks(self) -> list[str]:
        """Every block kept so far, as JSON, oldest first."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [trial.user_attrs[BLOCK_ATTR] for trial in trials if BLOCK_ATTR in trial.user_attrs]

    def deliver(self, unsent: Unsent) -> None:
        """Store what an earlier run of this machine could not, unless it got through after all."""
        if unsent.block is not None and unsent.block not in self.blocks:
            self._add_block(unsent.block)
        record = unsent.record
        if record is None or any(is_again(record, known) for known in self.records):
            return
        try:
            self._add(self._ours(record), unsent.params)
        except (ValueError, KeyError) as error:
            raise UnreadableRecord(f"what waits to be sent is damaged: {str(error)[:100]}") from None
        self._collect(self._study.get_trials(deepcopy=False))

    def _begin(self, params: Params, claim: Claim) -> int:
        """A running trial with its claim, in one write: no worker ever sees the one without the other."""
        distributions = {name: self._space.distributions[name] for name in params}
        attributes = {ATTRIBUTE: claim.dump}
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=dict(params), distributions=distributions, user_attrs=attributes
            )
        )
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        mine = next(t for t in running if t.number not in self._open and claim_of(t) == claim)
        return self._opened(Trial(self._study, mine._trial_id)).number

    def _opened(self, trial: Trial) -> Trial:
        self._open[trial.number] = trial
        if self._others is not None:
            self._others.heart.begin(trial._trial_id)
        return trial

    def _closed(self, number: int) -> Trial:
        trial = self._open.pop(number)
        if self._others is not None:
            self._others.heart.end(trial._trial_id)
        return trial

    def _label(self, trial: Trial, claim: Claim) -> None:
        try:
            trial.set_user_attr(ATTRIBUTE, claim.dump)
        except UpdateFinishedTrialError:
            # Taken for dead, and left to another worker; what this one measures all the same is kept.
            return

    def _elsewhere(self) -> list[FrozenTrial]:
        if self._others is None:
            return []
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if trial.number not in self._open]

    def _measuring_elsewhere(self) -> list[FrozenTrial]:
        claims = [(trial, claim_of(trial)) for trial in self._elsewhere()]
        counted = (trial for trial, c in claims if c is None or (c.purpose is Purpose.TRIAL and not c.comes_round))
        return list(counted)

    def _rivals(self, what: str) -> list[FrozenTrial]:
        return [trial for trial in self._elsewhere() if (claim := claim_of(trial)) is not None and claim.what == what]

    def _result_of(self, rival: FrozenTrial) -> TrialRecord | None:
        """What another worker's running trial will have come to; None when it died or gave up."""

        def runs() -> bool:
            return any(trial.number == rival.number for trial in self._elsewhere())

        self._wait(runs, f"{_name(rival)} to measure the same")
        return next((record for record in self.records if record.number == rival.number), None)

    def _first_before(self, number: int, name: str) -> bool:
        return any(trial.number < number for trial in self._rivals(name))

    def _wait(self, pending: Callable[[], bool], what: str) -> None:
        noted_at = None
        while self._others is not None and pending():
            if noted_at is None or time.monotonic() - noted_at > _NOTE_EVERY_S:
                self._others.note(f"Waiting for {what}.")
                noted_at = time.monotonic()
            time.sleep(self._others.heart.poll_s)
            self.refresh()

    def _collect(self, trials: list[FrozenTrial]) -> None:
        new = [
            t for t in trials if t.state.is_finished() and t.number not in self._known and RECORD_ATTR in t.user_attrs
        ]
        # Trials asked for together are run in another order.
        for trial in sorted(new, key=lambda t: (t.datetime_complete is None, t.datetime_complete, t.number)):
            self.records.append(self._ours(read_record(trial)))
            self._known.add(trial.number)

    def _ours(self, record: TrialRecord) -> TrialRecord:
        try:
            return replace(record, config=checked(record.config, self._space))
        except ValueError as error:
            raise UnreadableRecord(f"trial {record.number} is not one of this moetune's: {error}") from None

    def _send(self, unsent: Unsent, store: Callable[[], None]) -> None:
        """Twice, since a connection that breaks in the middle is replaced by the next; then it is kept here."""
        try:
            try:
                store()
            except StorageInternalError:
                store()
        except StorageInternalError:
            if self._others is not None:
                self._others.outbox.keep(unsent)
            raise

    def _store(self, trial: Trial, record: TrialRecord) -> None:
        try:
            trial.set_user_attr(RECORD_ATTR, RECORD.dump_json(record).decode())
            self._settle(trial, record)
        except UpdateFinishedTrialError:
            # Told after all, or taken for dead in the meantime: then the measurement becomes a trial of its own.
            if RECORD_ATTR not in self._study.get_trials(deepcopy=False)[trial.number].user_attrs:
                self._known.add(self._add(record, trial.params))

    def _settle(self, trial: Trial, record: TrialRecord) -> None:
        outcome = to_optuna(record)
        for key, value in outcome.constraints.items():
            trial.set_constraint(key, value)
        self._study.tell(trial, outcome.value, state=outcome.state, skip_if_finished=True)

    def _add(self, record: TrialRecord, params: Params) -> int:
        outcome = to_optuna(record)
        claim = Claim(self._worker, Purpose.TRIAL, record.origin, digest_of(record.config))
        values: dict[str, Choice] = {name: params[name] for name in self._space.distributions}
        self._study.add_trial(
            create_trial(
                state=outcome.state,
                value=outcome.value,
                params=values,
                distributions=self._space.distributions,
                user_attrs={RECORD_ATTR: RECORD.dump_json(record).decode(), ATTRIBUTE: claim.dump},
                constraints=outcome.constraints,
            )
        )
        added = self._study.get_trials(deepcopy=False)
        return max(t.number for t in added if t.user_attrs.get(RECORD_ATTR) == RECORD.dump_json(record).decode())

    def _add_block(self, block_json: str) -> None:
        # A failed trial: the sampler takes no notice of it.
        self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={BLOCK_ATTR: block_json}))


def read_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial, under the number it has here; UnreadableRecord when it is none of ours."""
    content = trial.user_attrs[RECORD_ATTR]
    try:
        if not isinstance(content, str) or len(content) > LONGEST_RECORD:
            raise ValueError("no record")
        return replace(RECORD.validate_json(content), number=trial.number)
    except (ValidationError, ValueError) as error:
        raise UnreadableRecord(f"trial {trial.number} is not one of this moetune's: {str(error)[:100]}") from None


def _name(trial: FrozenTrial) -> str:
    claim = claim_of(trial)
    return claim.worker if claim is not None else "another worker"
