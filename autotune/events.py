"""What a search tells whoever watches it."""

from enum import StrEnum
from typing import Protocol

from moetune.autotune.record import Origin, TrialRecord
from moetune.engine.config import EngineConfig


class Phase(StrEnum):
    """The parts of a search, in order."""

    PREPARE = "preparing"
    BASELINES = "baselines"
    TRIALS = "trials"
    NOISE = "noise"
    LOOKS = "closest again"
    CONFIRM = "baselines again"
    RACE = "race"


class SearchEvents(Protocol):
    """Observes a search; must not raise."""

    def phase(self, phase: Phase, total: int) -> None:
        """A part begins; `total` trials are expected at most; 0: nobody knows."""

    def note(self, text: str) -> None:
        """Something worth a line: why a knob is absent, that a search was resumed."""

    def trial_started(self, origin: Origin, name: str, config: EngineConfig) -> None:
        """A configuration is being measured."""

    def trial_finished(self, record: TrialRecord, best: TrialRecord | None, baseline: TrialRecord | None) -> None:
        """It is done; the best trial of all and the best baseline so far."""

    def race_progress(self, standing: str) -> None:
        """A round of the race, or of the A/A comparison before it, begins."""


class Silent:
    """Nobody watches."""

    def phase(self, phase: Phase, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def trial_started(self, origin: Origin, name: str, config: EngineConfig) -> None:
        pass

    def trial_finished(self, record: TrialRecord, best: TrialRecord | None, baseline: TrialRecord | None) -> None:
        pass

    def race_progress(self, standing: str) -> None:
        pass
