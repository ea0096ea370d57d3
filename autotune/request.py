"""What one search is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from moetune.autotune.cost_hits import HitCurve
from moetune.autotune.database import Database
from moetune.autotune.knobs import Choice
from moetune.autotune.quality import QualityLevel
from moetune.autotune.race import Rules
from moetune.autotune.sampler import Sampler
from moetune.engine.config import KvType
from moetune.profiles.workload import Workload

DEFAULT_KV_TYPES = (KvType.F16, KvType.Q8_0)


@dataclass(frozen=True)
class SearchRequest:
    """One search.

    device: ggml name of the fast tier, None to choose, "none" for plain CPU. choices: what knobs are restricted to, by
    name. n_trials: sampled and seeded configurations, baselines and the race not counted. budget_s: wall-clock seconds
    for all of it, None for no limit. patience: trials without a better one that end the sampling. finalists: those
    that may race the best baseline. passes: timed prompt passes a trial. longest_trial_s: time limit before anything
    is known; later trials get `incumbent_factor` times the incumbent's wall time and its reload. rules: of the race.
    engine_version: part of the study's key. allow_overcommit: search even where the model is larger than RAM and fast
    tier together. device may name several, separated by commas. routing: the model's recorded routing, None where there
    is none. hits: recorded or stated hit rates, for the cost model; None takes its assumption.
    quality: what KV types may cost; quality_text: what that is measured on, None for the workload's own texts.
    database: where identical machines share the study; None keeps it in `state_dir`.
    """

    workload: Workload
    n_ctx: int
    state_dir: Path
    engine_version: str
    n_trials: int = 24
    device: str | None = None
    kv_types: tuple[KvType, ...] = DEFAULT_KV_TYPES
    choices: tuple[tuple[str, tuple[Choice, ...]], ...] = ()
    seed: int = 0
    sampler: Sampler = Sampler.TPE
    passes: int = 2
    longest_trial_s: float = 900.0
    shortest_limit_s: float = 30.0
    incumbent_factor: float = 3.0
    budget_s: float | None = None
    patience: int = 16
    finalists: int = 6
    rules: Rules = Rules()
    hits: HitCurve | None = None
    allow_overcommit: bool = False
    routing: Path | None = None
    quality: QualityLevel = QualityLevel.NEAR_LOSSLESS
    quality_text: str | None = None
    database: Database | None = None
