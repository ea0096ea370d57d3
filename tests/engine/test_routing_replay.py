"""Replays of a recorded pass by the engine's own policy code, and the optimum against every cache there could be."""

from itertools import combinations

import numpy as np
import pytest
from routing_samples import random_routing

from moetune.engine.config import Policy
from moetune.engine.library import plugin_path
from moetune.engine.routing import Ids, RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_replay import (
    OPTIMAL,
    POLICIES,
    POLICY_SETTINGS,
    SEEDED,
    HitRates,
    check_settings,
    hit_rates,
)
from moetune.errors import ExitCode, MoetuneError

pytestmark = pytest.mark.skipif(not plugin_path().is_file(), reason="the plugin is not built")


def replayed(routing: Routing, slots: tuple[int, ...], *settings: str) -> HitRates:
    (workload,) = routing.workloads
    return hit_rates(routing.layers, workload, slots, settings, lambda: None)


def best_of_all_caches(ids: Ids, n_slots: int, n_skip: int) -> int:
    """Hits from token n_skip on, over every sequence of contents a cache that loads on use could have."""
    reachable: dict[frozenset[int], int] = {frozenset(): 0}
    for at, token in enumerate(ids.tolist()):
        after: dict[frozenset[int], int] = {}
        for held, hits in reachable.items():
            now = hits + (len(held & set(token)) if at >= n_skip else 0)
            there = sorted(held | set(token))
            for kept in combinations(there, min(n_slots, len(there))):
                after[frozenset(kept)] = max(now, after.get(frozenset(kept), 0))
        reachable = after
    return max(reachable.values())


@pytest.mark.parametrize("seed", range(12))
def test_optimal_is_the_best_of_all_caches(seed: int) -> None:
    """Every choice of what to keep is tried."""
    routing = random_routing((RoutedLayer(0, 6, 2),), {"w": 14}, seed, skew=0.5)
    ids = routing.workloads[0].ids[0]
    scored = 7 * 2
    rates = replayed(routing, (1, 2, 3, 4)).rates
    for i, rate in enumerate(rates[OPTIMAL]):
        assert rate * scored == pytest.approx(best_of_all_caches(ids, i + 1, 7))
        assert max(of_policy[i] for of_policy in rates.values()) == rate


def test_no_policy_beats_the_optimum_and_more_slots_serve_more() -> None:
    """On a long text, for every number of slots; the optimum never gets worse with more of them."""
    rates = replayed(
        random_routing((RoutedLayer(0, 32, 4), RoutedLayer(1, 16, 2)), {"w": 600}), (1, 4, 8, 16, 31)
    ).rates
    assert sorted(rates) == sorted(POLICIES)
    for policy in POLICIES:
        assert all(0 < rate <= best for rate, best in zip(rates[policy], rates[OPTIMAL], strict=True)), policy
        assert rates[policy][0] < rates[policy][-1]
    assert list(rates[OPTIMAL]) == sorted(rates[OPTIMAL])


def test_with_a_slot_for_every_expert_everything_is_served_once_it_is_loaded() -> None:
    """In the second half nothing is missed, whoever decides; a layer never has more slots than experts."""
    rates = replayed(random_routing((RoutedLayer(0, 8, 2), RoutedLayer(1, 4, 2)), {"w": 400}, skew=0.0), (8,)).rates
    assert rates == dict.fromkeys(POLICIES, (1.0,))


def turned() -> Routing:
    """A text that changes its experts half-way."""
    first, second = np.tile(np.array([[0, 1]], np.uint8), (100, 1)), np.tile(np.array([[2, 3]], np.uint8), (100, 1))
    workload = WorkloadRouting("w", (np.concatenate((first, second)),))
    return Routing("0" * 32, (RoutedLayer(0, 4, 2),), (workload,))


def test_static_keeps_what_came_first() -> None:
    """When the text changes its experts it serves nothing any more; a policy that adapts does."""
    rates = replayed(turned(), (2,)).rates
    assert rates[Policy.STATIC][0] == 0
    assert rates[Policy.HEAT][0] > 0.5


def test_seeded_serves_what_the_first_half_used_most() -> None:
    """By hand: the first half uses 0, 1, 1, the second 1, 2, 1, 1."""
    ids = np.array([[0], [1], [1], [1], [2], [1], [1]], np.uint8)
    routing = Routing("0" * 32, (RoutedLayer(0, 3, 1),), (WorkloadRouting("w", (ids,)),))
    rates = replayed(routing, (1, 2))
    assert rates.n_scored_tokens == 4
    assert rates.rates[SEEDED] == (0.75, 0.75)


def test_layers_count_by_their_pairs() -> None:
    """The rate of two layers together is that of all their (token, expert) pairs."""
    both = random_routing((RoutedLayer(0, 16, 4), RoutedLayer(1, 16, 1)), {"w": 300})
    (workload,) = both.workloads
    alone = [
        replayed(Routing("0" * 32, (layer,), (WorkloadRouting("w", (ids,)),)), (4,)).rates
        for layer, ids in zip(both.layers, workload.ids, strict=True)
    ]
    for policy, (rate,) in replayed(both, (4,)).rates.items():
        assert rate == pytest.approx((4 * alone[0][policy][0] + alone[1][policy][0]) / 5)


def test_settings_reach_the_policy() -> None:
    """Without promotions nothing is ever loaded; who asks newcomers for a thousandfold heat does not adapt."""
    rates = replayed(turned(), (2,), "promotions=0").rates
    assert [rates[policy][0] for policy in Policy] == [0] * len(Policy)
    reluctant = replayed(turned(), (2,), "hysteresis=1000").rates
    assert reluctant[Policy.HEAT] == (0,)
    assert reluctant[OPTIMAL] == replayed(turned(), (2,)).rates[OPTIMAL]


@pytest.mark.parametrize(
    "setting",
    ["interval", "interval=0", "interval=x", "interval=1\npolicy=lru", "slots=4", "policy=lru", "=1", "half_life="],
)
def test_a_wrong_setting_is_refused_before_any_work(setting: str) -> None:
    """The message names what is wrong, the remedy what there is; other settings of the cache are none of replay's."""
    with pytest.raises(MoetuneError, match="replayed") as caught:
        check_settings([setting])
    assert caught.value.code is ExitCode.USAGE
    assert all(key in caught.value.remedy for key in POLICY_SETTINGS)


def test_every_documented_setting_is_taken() -> None:
    """The keys are the cache's own."""
    check_settings([f"{key}=1" for key in POLICY_SETTINGS])
