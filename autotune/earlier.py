"""What earlier studies of this model on this machine found best: worth trying first, trusted for nothing."""

from dataclasses import replace
from pathlib import Path

from moetune.autotune.database import Database
from moetune.autotune.identity import StudyIdentity
from moetune.autotune.memory import MemoryModel
from moetune.autotune.shelf import StoredStudy, studies_of
from moetune.autotune.space import Space
from moetune.engine.config import EngineConfig

_MOST = 3


def earlier_best(
    state_dir: Path, database: Database | None, identity: StudyIdentity, space: Space, memory: MemoryModel
) -> tuple[EngineConfig, ...]:
    """The best configuration of each study of another context or workload, as near as this space has it, at most 3.

    The same workload first, then the nearest context. What a stored record asks of the engine never reaches it as it
    stands: every value becomes a choice of this space, slots the same share of what is free now.
    """
    teaching = studies_of(state_dir, database).read(lambda other: other.teaches(identity)).studies
    studies = sorted(teaching, key=lambda study: _distance(study, identity))
    found = [_nearest(study.best.config, space, memory) for study in studies if study.best is not None]
    return tuple(dict.fromkeys(config for config in found if config is not None))[:_MOST]


def _distance(study: StoredStudy, identity: StudyIdentity) -> tuple[bool, float]:
    ratio = study.identity.n_ctx / identity.n_ctx
    return study.identity.workload != identity.workload, max(ratio, 1 / ratio)


def _nearest(config: EngineConfig, space: Space, memory: MemoryModel) -> EngineConfig | None:
    """None where its KV types may not compete, or where it does not fit."""
    near = space.config_of(space.params_of(replace(config, n_ctx=space.default.n_ctx), memory), memory)
    same_types = (near.type_k, near.type_v) == (config.type_k, config.type_v)
    return near if same_types and memory.fits_fast(near) else None
