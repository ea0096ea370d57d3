"""Signs of life of this worker's trials, and an eye on those of the others."""

import threading
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial


class Heart:
    """Beats for every open trial from a thread of its own, since the main one waits for the engine.

    A context manager: when it ends, so do the signs of life.
    """

    def __init__(self, storage: RDBStorage, interval_s: int) -> None:
        self._storage = storage
        self._interval_s = interval_s
        self._beating: set[int] = set()
        self._seen: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Not waited for: it may be waiting for a database that is gone.
        self._stop.set()

    @property
    def poll_s(self) -> float:
        """How often to look whether another worker has finished."""
        return min(1.0, self._interval_s / 10)

    def begin(self, trial_id: int) -> None:
        """A trial of this worker runs from now on."""
        self._storage.record_heartbeat(trial_id)
        self._beating.add(trial_id)

    def end(self, trial_id: int) -> None:
        """It runs no longer."""
        self._beating.discard(trial_id)

    def bury(self, study: Study, running: Iterable[FrozenTrial]) -> None:
        """Fail the trials whose workers are dead; optuna then tells the storage's callback.

        A worker that died before its first beat would be waited for for ever: whoever sees a trial for the first time
        gives it one.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        for trial in running:
            if trial._trial_id not in self._seen:
                self._seen.add(trial._trial_id)
                self._storage.record_heartbeat(trial._trial_id)

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            for trial_id in tuple(self._beating):
                try:
                    self._storage.record_heartbeat(trial_id)
                except StorageInternalError:
                    # The main thread meets the same database and says so; until then the next beat may get through.
                    break
