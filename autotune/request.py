"""What one search is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from moetune.autotune.database import Database
from moetune.engine.config import KvType
from moetune.profiles.workload import Workload

DEFAULT_KV_TYPES = (KvType.F16, KvType.Q8_0)


@dataclass(frozen=True)
class SearchRequest:
    """One search.

    device: ggml name of the fast tier, None to choose, "none" for plain CPU. n_trials: sampled and seeded
    configurations, baselines and the duel not counted. finalists: candidates that may duel the best baseline.
    passes: timed prompt passes a trial. longest_trial_s: the time limit before anything is known; later trials get
    `incumbent_factor` times the incumbent's wall time and its reload. engine_version: part of the study's key.
    allow_overcommit: search even where the model is larger than RAM and fast tier together. database: where identical
    machines share the study; None keeps it in `state_dir`.
    """

    workload: Workload
    n_ctx: int
    state_dir: Path
    engine_version: str
    n_trials: int = 24
    device: str | None = None
    kv_types: tuple[KvType, ...] = DEFAULT_KV_TYPES
    seed: int = 0
    passes: int = 2
    longest_trial_s: float = 900.0
    shortest_limit_s: float = 30.0
    incumbent_factor: float = 5.0
    finalists: int = 2
    duel_blocks: int = 6
    margin: float = 0.01
    allow_overcommit: bool = False
    database: Database | None = None
