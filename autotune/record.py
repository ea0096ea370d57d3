"""One trial, as kept: what was run, what came of it, and the one place that maps it to Optuna's states."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Annotated

from optuna.trial import TrialState
from pydantic import AfterValidator, TypeAdapter

from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, FailureReason, Measurement


class Origin(StrEnum):
    """Who proposed a trial; LOOK: nobody, it was one before and is measured again."""

    BASELINE = "baseline"
    SEED = "seed"
    SAMPLER = "sampler"
    LOOK = "look"


@dataclass(frozen=True)
class NotLaunched:
    """Never given to the engine: it cannot fit, or its KV types are outside the quality gate, as `quality` says.

    Bytes too many, 0 or less where it fits.
    """

    fast_excess_bytes: int
    host_excess_bytes: int
    quality: str = ""

    @property
    def detail(self) -> str:
        if self.quality:
            return f"not launched: {self.quality}"
        where = "fast tier" if self.fast_excess_bytes > 0 else "RAM"
        excess = max(self.fast_excess_bytes, self.host_excess_bytes)
        return f"not launched: {excess / (1 << 20):,.1f} MiB too many for the {where}"


Outcome = Measurement | Failed | NotLaunched


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial. name: the baseline's, else "". turn_s: the objective; None without a measurement.

    wall_s: what the trial cost, loading included. fast_excess_bytes, host_excess_bytes: as predicted before it ran.
    bad_quality: its KV types are known to be outside the quality gate.
    """

    number: int
    origin: Origin
    name: str
    config: EngineConfig
    outcome: Outcome
    turn_s: float | None
    wall_s: float
    fast_excess_bytes: int
    host_excess_bytes: int
    bad_quality: bool = False

    @property
    def measurement(self) -> Measurement | None:
        return self.outcome if isinstance(self.outcome, Measurement) else None

    @property
    def launched(self) -> bool:
        """Whether the engine was given it."""
        return not isinstance(self.outcome, NotLaunched)

    @property
    def failure(self) -> str | None:
        """Why there is no measurement, in one line."""
        if isinstance(self.outcome, Failed):
            detail = " ".join(self.outcome.detail.split())
            return f"{self.outcome.reason}: {detail}" if detail else str(self.outcome.reason)
        return self.outcome.detail if isinstance(self.outcome, NotLaunched) else None


def _sound(record: TrialRecord) -> TrialRecord:
    """Of a stored record: every figure can be computed with."""
    measured = record.measurement
    figures = (record.wall_s, *(() if record.turn_s is None else (record.turn_s,)))
    if (measured is None) != (record.turn_s is None) or not all(0 <= figure < inf for figure in figures):
        raise ValueError("a trial without usable figures")
    if measured is not None and not (measured.has_timings and record.turn_s):
        raise ValueError("a measurement without timings")
    return record


RECORD = TypeAdapter(Annotated[TrialRecord, AfterValidator(_sound)])


@dataclass(frozen=True)
class OptunaOutcome:
    """A record in Optuna's terms. Constraints are feasible at 0 and below; every trial sets all of them."""

    state: TrialState
    value: float | None
    constraints: dict[str, float]


def to_optuna(record: TrialRecord) -> OptunaOutcome:
    """Measured trials complete; all others are pruned, because the sampler ignores failed ones entirely."""
    fast, host = record.fast_excess_bytes / (1 << 20), record.host_excess_bytes / (1 << 20)
    runs = 0.0
    if isinstance(record.outcome, Failed):
        if record.outcome.reason is FailureReason.OUT_OF_MEMORY:
            fast = max(fast, 1.0)
        else:
            runs = 1.0
    elif isinstance(record.outcome, Measurement):
        # It ran: whatever the prediction said, it fits.
        fast, host = min(fast, 0.0), min(host, 0.0)
    state = TrialState.COMPLETE if record.turn_s is not None else TrialState.PRUNED
    constraints = {"fast_memory_mib": fast, "host_memory_mib": host, "runs": runs, "quality": float(record.bad_quality)}
    return OptunaOutcome(state, record.turn_s, constraints)
