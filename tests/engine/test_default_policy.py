"""What the cache's default settings make of synthetic routing: skewed, drifting, flat; replayed by its own code."""

from functools import cache

import numpy as np
import pytest

from moetune.engine.library import plugin_path
from moetune.engine.routing import Ids, RoutedLayer, WorkloadRouting
from moetune.engine.routing_replay import OPTIMAL, hit_rates

pytestmark = pytest.mark.skipif(not plugin_path().is_file(), reason="the plugin is not built")

N_TOKENS, N_USED = 4000, 8


def quarter_resident(ids: Ids, n_expert: int) -> dict[str, float]:
    """Hit rate of every policy over the second half, with slots for a quarter of the experts."""
    layer = RoutedLayer(0, n_expert, N_USED)
    workload = WorkloadRouting("synthetic", (ids.astype(layer.id_type),))
    rates = hit_rates((layer,), workload, (n_expert // 4,), (), lambda: None).rates
    return {policy: rate for policy, (rate,) in rates.items()}


def draw(rng: np.random.Generator, popularity: np.ndarray, n_tokens: int) -> np.ndarray:
    """`N_USED` different experts a token, drawn one after the other by `popularity` (Gumbel's trick)."""
    scores = rng.gumbel(size=(n_tokens, popularity.size)) + np.log(popularity)
    return np.argpartition(-scores, N_USED - 1, axis=1)[:, :N_USED]


def share_of_top_fifth(ids: np.ndarray, n_expert: int) -> float:
    counts = np.sort(np.bincount(ids.ravel(), minlength=n_expert))[::-1]
    return float(counts[: round(n_expert / 5)].sum() / ids.size)


@cache
def skewed(n_expert: int) -> np.ndarray:
    """Popularity by a power law under which the top fifth of the experts take 85 % of the activations."""
    ranks = np.arange(1.0, n_expert + 1)
    low, high = 0.0, 8.0
    for _ in range(12):
        exponent = (low + high) / 2
        share = share_of_top_fifth(draw(np.random.default_rng(0), ranks**-exponent, 2000), n_expert)
        low, high = (exponent, high) if share < 0.85 else (low, exponent)
    return ranks**-exponent


@pytest.mark.parametrize("n_expert", [64, 128])
@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_of_the_experts_serves_nine_tenths_of_what_could_be_served(n_expert: int, seed: int) -> None:
    """On skewed routing that stays as it is, the hit rate is at least 0.9 of Belady's."""
    rng = np.random.default_rng(seed)
    ids = draw(rng, rng.permutation(skewed(n_expert)), N_TOKENS)
    assert share_of_top_fifth(ids, n_expert) == pytest.approx(0.85, abs=0.01)
    rates = quarter_resident(ids, n_expert)
    assert rates["heat"] >= 0.9 * rates[OPTIMAL]
    assert rates["lfru"] >= 0.9 * rates[OPTIMAL]


@pytest.mark.parametrize("n_expert", [64, 128])
def test_the_cache_follows_routing_that_drifts(n_expert: int) -> None:
    """Two experts swap their popularity every 20 tokens: slots that never change lose far more than the default."""
    rng = np.random.default_rng(1)
    popularity = rng.permutation(skewed(n_expert))
    stretches = []
    for _ in range(N_TOKENS // 20):
        pair = rng.choice(n_expert, 2, replace=False)
        popularity[pair] = popularity[pair[::-1]]
        stretches.append(draw(rng, popularity, 20))
    rates = quarter_resident(np.concatenate(stretches), n_expert)
    assert rates["heat"] >= 0.9 * rates[OPTIMAL]
    assert rates["static"] < 0.8 * rates[OPTIMAL]


def test_flat_routing_hits_as_often_as_chance() -> None:
    """There is nothing to learn, and shuffling experts about must not lose anything either."""
    rates = quarter_resident(draw(np.random.default_rng(2), np.ones(64), N_TOKENS), 64)
    assert rates["heat"] == pytest.approx(0.25, abs=0.01)
