"""Configurations read back from a study: what others wrote there may ask for anything."""

from dataclasses import fields, replace

from moetune.autotune.space import Space
from moetune.engine.config import CacheKnobs, EngineConfig

_CACHE_OFF = CacheKnobs(slots=0)
_PLACED = ("device", "gpu_layers", "ram_expert_layers", "more_devices", "tensor_split", "cache", "repack", "no_host")
_SIZED = ("slots", "budget_bytes", "reserve_bytes", "routing", "repack")


def checked(config: EngineConfig, space: Space) -> EngineConfig:
    """The configuration as this machine runs it; ValueError where no search of this space could have tried it."""
    config = here(config, space)
    if not belongs(config, space):
        raise ValueError("a configuration of another search")
    return config


def here(config: EngineConfig, space: Space) -> EngineConfig:
    """The same with this machine's copy of the recorded routing, which lies elsewhere on every machine."""
    if config.cache is None or config.cache.routing is None:
        return config
    return replace(config, cache=replace(config.cache, routing=space.routing))


def belongs(config: EngineConfig, space: Space) -> bool:
    """Whether every setting is one that a search of this space could have tried; only such ones reach the engine."""
    n_layers, tiers = space.model.n_layers, [tier.name for tier in space.tiers]
    placed = (
        config.device in (None, *tiers)
        and set(config.more_devices) <= set(tiers)
        and 0 <= config.gpu_layers <= n_layers + 1
        and 0 <= config.ram_expert_layers <= n_layers
        and len(config.tensor_split) <= len(tiers)
        and all(0 <= layers <= n_layers + 1 for layers in config.tensor_split)
    )
    chosen = (field.name for field in fields(config) if field.name not in _PLACED)
    return (
        placed
        and all(_may_be(space, name, getattr(config, name), getattr(space.default, name)) for name in chosen)
        and (config.cache is None or _cache_belongs(config.cache, space))
    )


def _cache_belongs(cache: CacheKnobs, space: Space) -> bool:
    total = max((tier.total_bytes for tier in space.tiers), default=0)
    sized = (
        0 <= cache.slots <= space.model.n_expert
        and 0 <= cache.budget_bytes <= total
        and 0 <= (cache.reserve_bytes or 0) <= total
        and cache.routing in (None, space.routing)
    )
    chosen = (field.name for field in fields(cache) if field.name not in _SIZED)
    return sized and all(_may_be(space, name, getattr(cache, name), getattr(_CACHE_OFF, name)) for name in chosen)


def _may_be(space: Space, name: str, value: object, default: object) -> bool:
    named = ("n_threads", "n_threads_batch") if name == "n_threads_batch" else (name, "type_kv")
    return value == default or any(value in space.choices(other) for other in named)
