"""What is said of a recorded pass, against definitions written out in full on cases small enough for that."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_samples import random_routing

from moetune.demo.measure import lru_hit_rate
from moetune.engine.routing import Ids, RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_analysis import (
    coverage,
    entropy_bits,
    experts_for,
    layer_uses,
    overlaps,
    reuse_distances,
    share_of_top,
    shared_top,
    static_hit_rate,
)

counts_of = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any).map(np.array)


def ids_of(n_expert: int, n_used: int, n_tokens: int, seed: int) -> Ids:
    return random_routing((RoutedLayer(0, n_expert, n_used),), {"w": n_tokens}, seed).workloads[0].ids[0]


def stack_distances(choices: list[int]) -> list[int]:
    """An LRU stack as a list, the last used in front."""
    stack: list[int] = []
    found = []
    for choice in choices:
        if choice in stack:
            found.append(stack.index(choice) + 1)
            stack.remove(choice)
        stack.insert(0, choice)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 60), st.integers(0, 99))
def test_reuse_distances_are_those_of_an_lru_stack(n_expert: int, n_used: int, n_tokens: int, seed: int) -> None:
    """Choice by choice, first uses left out."""
    ids = ids_of(n_expert, min(n_used, n_expert), n_tokens, seed)
    assert reuse_distances(ids, n_expert).tolist() == stack_distances(ids.ravel().tolist())


@pytest.mark.parametrize("n_slots", [1, 3, 8, 16])
def test_a_distance_tells_which_lru_holds_the_expert(n_slots: int) -> None:
    """The share of distances up to n is the hit rate of an LRU with n slots, replayed."""
    ids = ids_of(16, 2, 400, seed=3)
    distances = reuse_distances(ids, 16)
    assert np.count_nonzero(distances <= n_slots) / ids.size == pytest.approx(lru_hit_rate(ids, n_slots))


@given(counts_of)
def test_coverage_rises_from_nothing_to_everything_and_never_faster_than_before(counts: np.ndarray) -> None:
    """The most used expert comes first, so each one adds at most what the one before it added."""
    curve = coverage(counts)
    assert (curve[0], curve[-1]) == (0, pytest.approx(1))
    steps = np.diff(curve)
    assert (steps >= -1e-12).all()
    assert (np.diff(steps) <= 1e-12).all()


@given(counts_of, st.floats(0.01, 0.99))
def test_experts_for_a_share_are_the_fewest_that_take_it(counts: np.ndarray, share: float) -> None:
    """One expert fewer takes less."""
    n = experts_for(counts, share)
    most_used = np.sort(counts)[::-1] / counts.sum()
    assert most_used[:n].sum() >= share - 1e-9
    assert most_used[: n - 1].sum() < share


def test_flat_routing_has_no_favourites() -> None:
    """A fifth of the experts takes a fifth, also where that is no whole number of experts; entropy is log2."""
    flat = np.full(32, 7)
    assert share_of_top(flat, 0.2) == pytest.approx(0.2)
    assert entropy_bits(flat) == pytest.approx(5)
    assert experts_for(flat, 0.5) == 16


def test_one_expert_for_everything() -> None:
    """The other extreme: no entropy, one expert covers all."""
    single = np.array([0, 9, 0, 0, 0])
    assert share_of_top(single, 0.2) == pytest.approx(1)
    assert entropy_bits(single) == 0
    assert experts_for(single, 0.95) == 1


def test_entropy_is_shannons() -> None:
    """Against the formula, with an expert that is never used."""
    expected = -(0.5 * math.log2(0.5) + 0.3 * math.log2(0.3) + 0.2 * math.log2(0.2))
    assert entropy_bits(np.array([5, 0, 3, 2])) == pytest.approx(expected)


def test_a_static_set_hits_what_its_experts_are_asked() -> None:
    """Filled from one count, asked by another; ties go to the lower number, and the unused get no slot."""
    filled_from, served = np.array([5, 5, 1, 0]), np.array([1, 2, 3, 4])
    assert static_hit_rate(filled_from, served, 1) == pytest.approx(0.1)
    assert static_hit_rate(filled_from, served, 2) == pytest.approx(0.3)
    assert static_hit_rate(filled_from, served, 4) == pytest.approx(0.6)
    assert shared_top(filled_from, served, 2) == 0
    assert shared_top(filled_from, served, 4) == 1


def test_overlap_of_a_workload_with_its_twin_and_with_its_opposite() -> None:
    """The same routing shares every expert; experts that one never uses serve it nothing."""
    layers = (RoutedLayer(0, 8, 2), RoutedLayer(1, 8, 1))
    twins = random_routing(layers, {"a": 40}).workloads[0]
    low = np.tile(np.array([[0, 1]], np.uint8), (40, 1))
    routing = Routing("0" * 32, layers, (twins, WorkloadRouting("b", twins.ids)))
    for overlap in overlaps(routing):
        assert overlap.shared == 1
        assert overlap.served == pytest.approx(overlap.own)
    opposite = (WorkloadRouting("low", (low, low[:, :1])), WorkloadRouting("high", (low + 6, low[:, :1] + 6)))
    one, other = overlaps(Routing("0" * 32, layers, opposite))
    assert (one.of, one.on, other.of, other.on) == ("low", "high", "high", "low")
    assert (one.served, one.own) == (0, 1)


def test_every_layer_of_every_workload_is_counted() -> None:
    """Counts add up to tokens x used, and the figures are those of the layer's own counts."""
    routing = random_routing((RoutedLayer(2, 8, 2), RoutedLayer(5, 300, 3)), {"a": 30, "b": 50})
    for workload in routing.workloads:
        uses = layer_uses(routing, workload, lambda: None)
        assert [use.layer for use in uses] == [2, 5]
        for use, layer, ids in zip(uses, routing.layers, workload.ids, strict=True):
            assert sum(use.counts) == workload.n_tokens * layer.n_used
            assert use.counts[int(ids[0, 0])] == np.count_nonzero(ids == ids[0, 0])
            assert use.reuse_median is not None
            assert 1 <= use.reuse_median <= layer.n_expert


def test_experts_that_never_return_have_no_reuse_distance() -> None:
    """A text so short that no expert comes twice gives no figure instead of a wrong one."""
    once = WorkloadRouting("a", (np.array([[0, 1], [2, 3]], np.uint8),))
    (use,) = layer_uses(Routing("0" * 32, (RoutedLayer(0, 4, 2),), (once,)), once, lambda: None)
    assert (use.reuse_median, use.reuse_p90) == (None, None)
