"""What a search returns, and the profile that remembers it."""

from dataclasses import dataclass
from datetime import UTC, datetime

from moetune.autotune.race import Race
from moetune.autotune.record import TrialRecord
from moetune.autotune.request import SearchRequest
from moetune.autotune.space import Space
from moetune.autotune.verdict import Verdict
from moetune.autotune.words import one_line
from moetune.profiles.schema import SCHEMA_VERSION, Profile, SavedVerdict


@dataclass(frozen=True)
class SearchResult:
    """Everything a search learnt. records: all trials of the study, earlier runs' included, in order."""

    request: SearchRequest
    space: Space
    records: tuple[TrialRecord, ...]
    race: Race | None
    verdict: Verdict
    interrupted: bool


def saved_verdict(verdict: Verdict) -> SavedVerdict:
    """The verdict as studies and profiles keep it."""
    return SavedVerdict(kind=str(verdict.kind), sentence=one_line(verdict.sentence))


def profile_of(
    result: SearchResult, *, machine_fingerprint: str, machine_label: str, moetune_version: str
) -> Profile | None:
    """The profile to save: the winner, or the best baseline when nothing beat it; None when nothing may be kept.

    An interrupted search leaves no profile: what it knows has not been measured side by side.
    """
    verdict = result.verdict
    if result.interrupted or verdict.config is None or verdict.result is None or verdict.baseline is None:
        return None
    interval = verdict.interval if verdict.proven else None
    return Profile(
        schema_version=SCHEMA_VERSION,
        model_fingerprint=result.space.model.fingerprint,
        model_name=one_line(result.space.model.name),
        machine_fingerprint=machine_fingerprint,
        machine_label=one_line(machine_label),
        emulated=one_line(verdict.emulated) if verdict.emulated else None,
        engine_version=result.request.engine_version,
        n_ctx=result.request.n_ctx,
        workload=result.request.workload.name,
        config=verdict.config,
        result=verdict.result,
        baseline=verdict.baseline,
        baseline_name=verdict.baseline_name,
        baseline_config=verdict.baseline_config,
        gain=interval.gain if interval else 1.0,
        gain_low=interval.low if interval else 1.0,
        gain_high=interval.high if interval else 1.0,
        verdict=saved_verdict(verdict),
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        moetune_version=moetune_version,
    )
