"""A finished search with something to say about everything, and the report on it."""

from datetime import datetime
from pathlib import Path

from fake_runner import Landscape
from world import gpu, machine_with, moe_model, request_for, runner_for, still

from moetune.autotune.events import Silent
from moetune.autotune.quality_store import QualityStore
from moetune.autotune.race import Rules
from moetune.autotune.report.content import Report, Sources, report_of
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.shelf import Journals, StoredStudy
from moetune.engine.config import Policy
from moetune.engine.measurement import FailureReason
from moetune.engine.model import Model
from moetune.hardware.machine import Machine

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
NOW = datetime(2026, 1, 2, 3, 4)


def run(
    request: SearchRequest, landscape: Landscape, machine: Machine = MACHINE, model: Model = MODEL
) -> tuple[SearchResult, StoredStudy]:
    runner = runner_for(machine, model, landscape)
    result = search(request, runner, machine, model, Silent(), still)
    (study,) = Journals(request.state_dir).read().studies
    return result, study


def report_on(study: StoredStudy, state_dir: Path | None = None, machine: Machine | None = MACHINE) -> Report:
    known = QualityStore(state_dir / "quality").of_model(MODEL.fingerprint, "engine 1") if state_dir else []
    return report_of(Sources(study, MODEL, machine, known), version="1.2.3", now=NOW)


def rich_search(state_dir: Path) -> tuple[SearchRequest, SearchResult, StoredStudy]:
    """With a proven winner, a corner in which the engine crashes, and a KV type whose quality was scored."""
    request = request_for(state_dir, n_trials=24, rules=Rules(most_rounds=8))
    landscape = Landscape(
        noise=0.01,
        quantised_kv_gain=1.6,
        broken=lambda config: FailureReason.CRASHED if config.cache and config.cache.policy is Policy.LRU else None,
    )
    return request, *run(request, landscape)
