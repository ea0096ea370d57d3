"""Replays a recorded pass through the cache's own policy code: the hit rates it would have had, and the best one."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moetune.engine.config import Policy
from moetune.engine.library import ggml, plugin_path
from moetune.engine.routing import RoutedLayer, WorkloadRouting, count
from moetune.engine.routing_analysis import static_hit_rate
from moetune.errors import ExitCode, MoetuneError

# Besides the engine's policies: a set that a recording fills beforehand and nothing changes, and the best there can be.
SEEDED = "seeded"
OPTIMAL = "optimal"
POLICIES = (*(policy.value for policy in Policy), SEEDED, OPTIMAL)
POLICY_SETTINGS = ("interval", "hysteresis", "promotions", "min_sightings", "dwell", "half_life")

_ERROR_BYTES = 512


@dataclass(frozen=True)
class HitRates:
    """Hit rates of one workload's second half, from 0 to 1. slots: a layer; rates: of each policy, by slots."""

    workload: str
    n_scored_tokens: int
    slots: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]


def hit_rates(
    layers: Sequence[RoutedLayer],
    workload: WorkloadRouting,
    slots: Sequence[int],
    settings: Sequence[str],
    done: Callable[[], None],
) -> HitRates:
    """Replay the workload under every policy with every number of slots; `done` hears of each layer.

    The first half warms the cache up and is not scored. settings: KEY=VALUE as the cache takes them, KEY one of
    `POLICY_SETTINGS`. Raises MoetuneError (USAGE) with the cache's own words when it refuses one.
    """
    n_skip = workload.n_tokens // 2
    hits = {policy: np.zeros(len(slots)) for policy in POLICIES}
    n_pairs = 0
    for layer, ids in zip(layers, workload.ids, strict=True):
        plain = np.ascontiguousarray(ids, np.int32)
        scored = count(ids[n_skip:], layer.n_expert)
        for i, n_slots in enumerate(slots):
            held = min(n_slots, layer.n_expert)
            for policy in Policy:
                hits[policy.value][i] += _replay(plain, layer.n_expert, held, n_skip, policy, settings)
            seeds = count(ids[:n_skip], layer.n_expert)
            hits[SEEDED][i] += static_hit_rate(seeds, scored, held) * scored.sum()
            hits[OPTIMAL][i] += optimal_hits(plain, layer.n_expert, held, n_skip)
        n_pairs += int(scored.sum())
        done()
    rates = {policy: tuple((of_policy / n_pairs).tolist()) for policy, of_policy in hits.items()}
    return HitRates(workload.name, workload.n_tokens - n_skip, tuple(slots), rates)


def check_settings(settings: Sequence[str]) -> None:
    """Raise what `hit_rates` would raise for these settings, at once."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in POLICY_SETTINGS or not equals or not value.isprintable():
            raise _refused(f"there is no such setting as {setting!r}")
    _replay(np.zeros((1, 1), np.int32), 1, 1, 0, Policy.HEAT, settings)


def _replay(
    ids: NDArray[np.int32], n_expert: int, n_slots: int, n_skip: int, policy: Policy, settings: Sequence[str]
) -> int:
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    text = "\n".join([f"policy={policy.value}", *settings]).encode()
    hits: int = _policy_code().hotcache_replay(
        _pointer(ids), len(ids), ids.shape[1], n_expert, n_slots, n_skip, text, error, len(error)
    )
    return _checked(hits, error)


def optimal_hits(ids: NDArray[np.int32], n_expert: int, n_slots: int, n_skip: int) -> int:
    """Most pairs of ids [tokens, used] from token `n_skip` on that any cache of one layer could have hit (Belady)."""
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    hits: int = _policy_code().hotcache_replay_optimal(
        _pointer(ids), len(ids), ids.shape[1], n_expert, n_slots, n_skip, error, len(error)
    )
    return _checked(hits, error)


def _checked(hits: int, error: "ctypes.Array[ctypes.c_char]") -> int:
    if hits < 0:
        raise _refused(error.value.decode(errors="replace"))
    return hits


def _refused(why: str) -> MoetuneError:
    return MoetuneError(
        f"The policies cannot be replayed like that: {why}.",
        f"Use --set KEY=VALUE with one of {', '.join(POLICY_SETTINGS)} and a number.",
        ExitCode.USAGE,
    )


def _pointer(ids: NDArray[np.int32]) -> "ctypes._Pointer[ctypes.c_int32]":
    return ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


@cache
def _policy_code() -> ctypes.CDLL:
    """The plugin as a plain library: nothing is registered with ggml, so no model in this process is touched."""
    ggml()  # the plugin's own dependency, from where llama-cpp-python keeps it
    try:
        lib = ctypes.CDLL(str(plugin_path()))
    except OSError as error:
        raise MoetuneError(
            f"The hot-expert cache could not be loaded: {error}.",
            "Reinstall moetune so that the engine is built against the installed llama-cpp-python.",
            ExitCode.ENGINE,
        ) from error
    ids, text, size, number = ctypes.POINTER(ctypes.c_int32), ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int32
    lib.hotcache_replay.argtypes = [ids, size, number, number, number, size, text, text, size]
    lib.hotcache_replay_optimal.argtypes = [ids, size, number, number, number, size, text, size]
    lib.hotcache_replay.restype = lib.hotcache_replay_optimal.restype = ctypes.c_int64
    return lib
