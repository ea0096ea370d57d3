"""The cost model: more of anything is never slower, what is measured moves it, and what binds is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import MIB, WORKLOAD, gpu, machine_with, memory_of, moe_model, request_for

from moetune.autotune.cost import CostModel, cost_model
from moetune.autotune.cost_figures import Resource
from moetune.autotune.cost_hits import Skew, curve_from_routing, curve_from_skew, stated_skew
from moetune.autotune.plan import plan_for
from moetune.autotune.plan_table import plan_table
from moetune.autotune.space import cache_off
from moetune.autotune.trace import shape_for
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import CacheCounters, Measurement
from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting
from moetune.errors import ExitCode, MoetuneError

MACHINE = machine_with(gpu(900))
MODEL = moe_model()
IN_RAM = EngineConfig(n_ctx=2048, n_threads=8, device="CUDA0", gpu_layers=9, ram_expert_layers=8)


def cost() -> CostModel:
    return cost_model(MODEL, MACHINE, memory_of(MACHINE, MODEL), shape_for(WORKLOAD, 2048))


def cached(slots: int) -> EngineConfig:
    off = cache_off(IN_RAM, cost().memory.tier)
    return replace(off, cache=CacheKnobs(slots=slots))


def measured(config: EngineConfig, model: CostModel, factor: float, hit_rate: float | None = None) -> Measurement:
    """A trial that took `factor` times as long as `model` predicts."""
    seen = model.predict(config)
    hits = None if hit_rate is None else CacheCounters(int(hit_rate * 1000), int((1 - hit_rate) * 1000), 0, 0, 0, 0, 0)
    prompt = model.shape.prompt_tokens
    return Measurement(prompt, (factor * prompt / seen.pp_tps,), (factor / seen.tg_tps,) * 8, 0, 0, hits, 0.0)


@given(st.integers(1, 512), st.integers(1, 16), st.floats(0.05, 0.9), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_more_slots_never_lower_the_hit_rate(n_expert: int, n_used: int, share: float, more: float) -> None:
    """From none at all to every expert, whatever the skew."""
    skew = Skew(min(0.99, share + more * (1 - share)), share, "stated")
    curve = curve_from_skew(n_expert, min(n_used, n_expert), skew)
    rates = [curve.rate(slots) for slots in range(n_expert + 1)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(1.0))


def test_a_stated_skew_is_what_the_curve_goes_through() -> None:
    """The busiest fifth takes what was said, and a token's experts are as many as the model uses."""
    curve = curve_from_skew(64, 8, stated_skew("0.6@0.25"))
    assert curve.rate(16) == pytest.approx(0.6, abs=0.01)
    assert sum(curve.chances) == pytest.approx(8, rel=0.01)
    assert curve.distinct(1) == pytest.approx(8, rel=0.01)
    assert curve.distinct(512) <= 64


@pytest.mark.parametrize("text", ["", "0.85", "85@20", "0.2@0.85", "x@y", "0.5@0", "1@0.5", "nan@0.2"])
def test_a_skew_that_is_none_is_refused(text: str) -> None:
    """Also one that would make the busiest experts less busy than all."""
    with pytest.raises(MoetuneError) as refused:
        stated_skew(text)
    assert refused.value.code is ExitCode.USAGE


def test_recorded_routing_gives_the_cache_policys_own_hit_rates() -> None:
    """A text that keeps to four experts hits them all once there are four slots."""
    ids = np.tile(np.array([[0, 1], [2, 3]], np.uint8), (200, 1))
    routing = Routing("f" * 64, (RoutedLayer(0, 32, 2),), (WorkloadRouting("mail", (ids,)),))
    curve = curve_from_routing(routing)
    assert curve.rate(4) == pytest.approx(1.0)
    assert curve.rate(1) < 0.6
    assert curve.distinct(100) == pytest.approx(4)
    assert "mail" in curve.source


@given(st.sampled_from([r for r in Resource if r is not Resource.VRAM]), st.floats(1, 100), st.integers(0, 64))
@settings(max_examples=60, deadline=None)
def test_more_of_anything_is_never_slower(resource: Resource, factor: float, slots: int) -> None:
    """Bandwidth, link, arithmetic, and less of the fixed costs."""
    config = cached(slots) if slots else IN_RAM
    now = cost()
    better = replace(now, figures=now.figures.better(resource, factor))
    assert better.turn_s(config) <= now.turn_s(config) * (1 + 1e-9)


def test_more_slots_are_never_slower_once_the_cache_pays() -> None:
    """Every further slot takes pairs off the slower side."""
    turns = [cost().turn_s(cached(slots)) for slots in range(1, 65)]
    assert turns == sorted(turns, reverse=True)


def test_experts_on_the_device_are_faster_than_in_ram() -> None:
    """And the more of them the better, where they fit or not."""
    turns = [cost().turn_s(replace(IN_RAM, ram_expert_layers=layers)) for layers in range(9)]
    assert turns == sorted(turns)


def test_what_does_not_fit_is_said_so() -> None:
    """All experts on a card with less memory than they take."""
    assert not cost().predict(replace(IN_RAM, ram_expert_layers=0)).fits
    assert cost().predict(IN_RAM).fits


def test_what_binds_is_what_helps_most() -> None:
    """Experts read out of slow RAM: RAM bandwidth; with a link that crawls, the link."""
    now = cost()
    assert now.predict(replace(IN_RAM, n_ubatch=64)).remedies[0].resource is now.predict(IN_RAM).bound
    slow_ram = replace(now, figures=now.figures.better(Resource.RAM, 1 / 50))
    assert slow_ram.predict(IN_RAM).bound is Resource.RAM
    assert "RAM bandwidth binds" in slow_ram.predict(IN_RAM).reason
    slow_link = replace(now, figures=now.figures.better(Resource.LINK, 1 / 1000))
    assert slow_link.predict(IN_RAM).bound is Resource.LINK


def test_a_full_card_binds_where_more_slots_would_help() -> None:
    """The slots fill the memory there is, and most of the turn is misses."""
    now = replace(cost(), figures=cost().figures.better(Resource.RAM, 1 / 20))
    slots = now.memory.slots_that_fit(cached(0))
    assert 0 < slots < MODEL.n_expert
    remedies = {remedy.resource: remedy.saved for remedy in now.predict(cached(slots)).remedies}
    assert remedies[Resource.VRAM] > 0


def test_slots_spread_by_a_budget_hit_as_often_as_even_ones_of_its_bytes() -> None:
    """The mean number of slots a layer is what the curve is asked for."""
    now, even = cost(), cached(16)
    spread = replace(even, cache=CacheKnobs(slots=0, budget_bytes=16 * now.memory.slot_bytes(even)))
    assert now.predict(spread).hit_rate == now.predict(even).hit_rate
    assert now.turn_s(spread) == now.turn_s(even)


def test_prompts_are_computed_by_their_own_threads() -> None:
    """Fewer threads for batches slow prompts down and replies not at all."""
    now, on_cpu = cost(), IN_RAM.on_cpu
    usual, fewer = now.predict(on_cpu), now.predict(replace(on_cpu, n_threads_batch=2))
    assert fewer.pp_tps < usual.pp_tps
    assert fewer.tg_tps == usual.tg_tps


def test_a_plan_counts_all_devices(tmp_path: Path) -> None:
    """What lies on the second one is neither in RAM nor left out, and both are named."""
    plan = plan_for(request_for(tmp_path), machine_with(gpu(1000), gpu(700, "CUDA1")), MODEL, None)
    assert plan.best[0].config.more_devices
    *parts, in_all = plan.shares
    assert min(in_all.fast_bytes.values()) > 0
    assert sum(in_all.fast_bytes.values()) == plan.best[0].prediction.fast_bytes
    assert all(sum(share.fast_bytes[name] for share in parts) == used for name, used in in_all.fast_bytes.items())
    assert "CUDA0" in plan_table(plan)
    assert "CUDA1" in plan_table(plan)


def test_trials_correct_what_they_are_about_most() -> None:
    """A cache twice as slow as predicted says much about caches and little about stock llama.cpp."""
    now = cost()
    taught = now
    for _ in range(3):
        taught = taught.observe(cached(16), measured(cached(16), now, 2.0))
        taught = taught.observe(IN_RAM, measured(IN_RAM, now, 1.0))
    ratio = {config: taught.turn_s(config) / now.turn_s(config) for config in (cached(16), cached(8), IN_RAM)}
    assert ratio[cached(16)] == pytest.approx(2.0, rel=0.25)
    assert ratio[cached(8)] == pytest.approx(2.0, rel=0.25)
    assert ratio[IN_RAM] == pytest.approx(1.0, rel=0.2)


def test_one_disturbed_trial_among_many_changes_nothing() -> None:
    """Medians, not means."""
    now = cost()
    taught = now
    for factor in (1.0, 1.0, 9.0, 1.0, 1.0):
        taught = taught.observe(IN_RAM, measured(IN_RAM, now, factor))
    assert taught.turn_s(IN_RAM) == pytest.approx(now.turn_s(IN_RAM), rel=1e-6)


def test_measured_hit_rates_move_the_whole_curve() -> None:
    """And slots nobody has tried yet move with it, in order."""
    now = cost()
    taught = now.observe(cached(16), measured(cached(16), now, 1.0, hit_rate=0.3))
    assert now.hits.rate(16) > 0.5
    assert taught.hits.rate(16) == pytest.approx(0.3, abs=0.01)
    rates = [taught.hits.rate(slots) for slots in range(65)]
    assert rates == sorted(rates)
    assert rates[32] < now.hits.rate(32)


def test_memory_is_the_memory_models() -> None:
    """One prediction of bytes in the program, not two."""
    now = cost()
    footprint = now.memory.footprint(cached(8))
    seen = now.predict(cached(8))
    assert (seen.fast_bytes, seen.host_bytes) == (footprint.fast_bytes, footprint.host_bytes)
    assert seen.fast_bytes - now.predict(cached(7)).fast_bytes == pytest.approx(8 * 2 * MIB, rel=0.01)
