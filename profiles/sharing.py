"""Profiles on their way from machine to machine: paths belong to the machine they are on."""

from dataclasses import replace

from moetune.engine.config import EngineConfig
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore

# Stands in a shared profile for "the routing recorded where it is run".
RECORDED = "routing.moetrace"


def for_sharing(profile: Profile) -> Profile:
    """Without the path of the recorded routing, which names this machine's user."""
    return _with_routing(profile, RECORDED)


def for_here(profile: Profile, store: ProfileStore) -> Profile:
    """With this machine's recorded routing in the place of whatever path the file names, be it there or not."""
    return _with_routing(profile, str(store.routing_path(profile.model_fingerprint).absolute()))


def _with_routing(profile: Profile, path: str) -> Profile:
    base = profile.baseline_config
    return replace(profile, config=_routed(profile.config, path), baseline_config=base and _routed(base, path))


def _routed(config: EngineConfig, path: str) -> EngineConfig:
    if config.cache is None or config.cache.routing is None:
        return config
    return replace(config, cache=replace(config.cache, routing=path))
