"""A few diverse configurations worth trying before the sampler knows anything."""

from dataclasses import replace

from moetune.autotune.memory import MemoryModel
from moetune.autotune.space import Space, cache_off
from moetune.engine.config import CacheKnobs, EngineConfig, KvType


def seeds(space: Space, memory: MemoryModel) -> tuple[EngineConfig, ...]:
    """Best guesses first; those that share a placement stand together, to share a load."""
    return tuple(dict.fromkeys([*_cache_seeds(space, memory), *_stock_seeds(space, memory)]))


def _cache_seeds(space: Space, memory: MemoryModel) -> list[EngineConfig]:
    if not space.has_cache:
        return []
    bare = cache_off(space.default, space.tier)
    plans = [
        (bare, 1.0, CacheKnobs(slots=0)),
        (bare, 0.5, CacheKnobs(slots=0)),
        # Eager, then patient: both ends of how fast the resident experts may change.
        (bare, 1.0, CacheKnobs(slots=0, interval_tokens=1, hysteresis=1.1, promotions=4)),
        (bare, 1.0, CacheKnobs(slots=0, interval_tokens=16, hysteresis=1.5, promotions=1)),
    ]
    # A smaller KV cache and smaller buffers leave room for more slots.
    if _has_q8(space):
        plans.append((replace(bare, type_k=KvType.Q8_0, type_v=KvType.Q8_0), 1.0, CacheKnobs(slots=0)))
    if space.choices("n_ubatch"):
        plans.append((replace(bare, n_ubatch=int(space.choices("n_ubatch")[0])), 1.0, CacheKnobs(slots=0)))
    if space.choices("gpu_layers"):
        # Where not even the dense parts fit, slots alone may be the better use of the memory.
        plans.append((replace(bare, gpu_layers=0), 1.0, CacheKnobs(slots=0)))
    found = []
    for config, share, knobs in plans:
        slots = memory.slots_that_fit(config, share)
        if slots:
            found.append(replace(config, cache=replace(knobs, slots=slots)))
    return found


def _stock_seeds(space: Space, memory: MemoryModel) -> list[EngineConfig]:
    found = [replace(space.default, n_threads=int(threads)) for threads in space.choices("n_threads")]
    ubatches = space.choices("n_ubatch")
    if ubatches:
        found.append(replace(space.default, n_ubatch=int(ubatches[-1])))
    if _has_q8(space):
        found.append(replace(space.default, type_k=KvType.Q8_0, type_v=KvType.Q8_0))
    return [config for config in found if config != space.default and memory.fits_fast(config)]


def _has_q8(space: Space) -> bool:
    both = set(space.choices("type_k")) & set(space.choices("type_v"))
    return KvType.Q8_0 in both.union(space.choices("type_kv"))
