"""Whole searches on known landscapes: what is found, what is never launched, and what survives."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner, Landscape
from world import MIB, dense_model, gpu, machine_with, moe_model, request_for, runner_for, still

from moetune.autotune import baselines
from moetune.autotune.baselines import LOOKS
from moetune.autotune.events import Silent
from moetune.autotune.quality import QualityLevel
from moetune.autotune.record import Origin
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.verdict import VerdictKind
from moetune.engine.config import EngineConfig, KvType
from moetune.engine.measurement import FailureReason
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine

MACHINE = machine_with(gpu(900))
MODEL = moe_model()
Broken = Callable[[EngineConfig], FailureReason | None]


def run(
    request: SearchRequest, landscape: Landscape, machine: Machine = MACHINE, model: Model = MODEL
) -> tuple[SearchResult, FakeRunner]:
    runner = runner_for(machine, model, landscape, request.device)
    return search(request, runner, machine, model, Silent(), still), runner


def by_name(result: SearchResult, name: str) -> list[EngineConfig]:
    return [record.config for record in result.records if record.name == name]


def test_a_cache_that_wins_is_found_and_proven(request_: SearchRequest) -> None:
    """Where slots pay, the search ends with the cache, in the same memory as the baseline."""
    result, _ = run(request_, Landscape(noise=0.02))
    verdict = result.verdict
    assert verdict.kind is VerdictKind.CACHE_WINS
    assert verdict.config is not None
    assert verdict.config.cache is not None
    assert verdict.config.cache.slots > 4
    assert verdict.interval is not None
    assert verdict.interval.low > 1.1
    stock = [r.turn_s for r in result.records if not r.config.has_slots and r.turn_s is not None]
    assert verdict.baseline is not None
    assert verdict.baseline.turn_s < min(stock) * 1.1


def test_a_cache_that_loses_is_not_recommended(request_: SearchRequest) -> None:
    """Where the plugin costs more than slots bring, something else is kept, and it is said why."""
    result, _ = run(request_, Landscape(plugin_cost=3.0, hit_gain=0.1, best_threads=8))
    assert result.verdict.kind is VerdictKind.NO_PROVEN_IMPROVEMENT
    assert result.verdict.config is not None
    assert result.verdict.config.cache is None
    assert result.verdict.baseline_name == baselines.BEST_OFFLOAD
    assert "Nothing beat stock, best layer offload" in result.verdict.sentence
    assert "cache off" in result.verdict.sentence


def test_threads_are_not_credited_to_the_cache(request_: SearchRequest) -> None:
    """Slots do nothing here and half the threads do much: whatever wins, it is not the cache."""
    land = Landscape(plugin_cost=1.0, hit_gain=0.0, best_threads=4, device_expert_layer_s=0.004, noise=0.001)
    result, _ = run(request_, land)
    assert result.verdict.kind is not VerdictKind.CACHE_WINS
    assert result.verdict.config is not None
    assert result.verdict.config.n_threads == 4


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_never_wins(tmp_path: Path, seed: int) -> None:
    """When every configuration is equally fast, 3 % noise names no winner."""
    request = request_for(tmp_path, seed=seed)
    runner = runner_for(MACHINE, MODEL, Landscape(flat_s=0.01, noise=0.03))
    runner.seed = seed
    result = search(request, runner, MACHINE, MODEL, Silent(), still)
    assert result.verdict.kind is VerdictKind.NO_PROVEN_IMPROVEMENT


def test_baselines_come_first(request_: SearchRequest) -> None:
    """Stock with experts in RAM, cache off, best layer offload: before anything else, and at the same memory."""
    result, runner = run(request_, Landscape())
    names = [record.name for record in result.records[:4]]
    assert names == [baselines.EXPERTS_IN_RAM, baselines.CACHE_OFF, baselines.STOCK_CPU, baselines.BEST_OFFLOAD]
    in_ram, off, _, offload = runner.launched[:4]
    assert in_ram.cache is None
    assert in_ram.ram_expert_layers == MODEL.n_layers
    assert off.cache is not None
    assert off.cache.slots == 0
    assert 0 < offload.ram_expert_layers < MODEL.n_layers
    assert runner.memory.fits_fast(offload)
    assert not runner.memory.fits_fast(replace(offload, ram_expert_layers=offload.ram_expert_layers - 1))


def test_nothing_that_cannot_fit_is_launched(request_: SearchRequest) -> None:
    """Every launched configuration was predicted to fit; the others are recorded and cost nothing."""
    result, runner = run(replace(request_, n_trials=40), Landscape())
    assert all(runner.memory.fits_fast(config) for config in runner.launched)
    skipped = [record for record in result.records if record.measurement is None]
    assert all(record.fast_excess_bytes > 0 for record in skipped)
    assert not {record.config for record in skipped} & set(runner.launched)


def test_a_memory_cliff_moves_the_best_offload_back(request_: SearchRequest) -> None:
    """Where the device holds less than predicted, layers go back to RAM one at a time until it runs."""
    plain, _ = run(request_, Landscape())
    predicted = by_name(plain, baselines.BEST_OFFLOAD)[0].ram_expert_layers
    machine = machine_with(gpu(1300))
    request = replace(request_, state_dir=request_.state_dir / "cliff")
    result, _ = run(request, Landscape(device_bytes=600 * MIB), machine)
    family = [record for record in result.records if record.name == baselines.BEST_OFFLOAD]
    first_looks = {r.config: r for r in reversed(family) if r.config.n_ubatch == family[0].config.n_ubatch}
    tried = sorted(config.ram_expert_layers for config in first_looks)
    assert predicted > 0
    assert len(tried) > 1
    assert tried == list(range(tried[0], tried[0] + len(tried)))
    ran = {config.ram_expert_layers for config, record in first_looks.items() if record.measurement is not None}
    assert ran == {tried[-1]}


def test_a_device_that_holds_more_than_predicted_gets_more_layers(request_: SearchRequest) -> None:
    """A careful prediction must not make a weak baseline: what the first ones measured moves more layers over."""
    as_predicted, _ = run(request_, Landscape())
    roomier, _ = run(replace(request_, state_dir=request_.state_dir / "roomier"), Landscape(true_buffers=0.1))
    careful, bold = (
        min(config.ram_expert_layers for config in by_name(result, baselines.BEST_OFFLOAD))
        for result in (as_predicted, roomier)
    )
    assert bold < careful


def test_a_smaller_micro_batch_buys_the_best_offload_more_layers(request_: SearchRequest) -> None:
    """The baseline may use its memory as cleverly as the candidates: buffers given up become layers."""
    result, _ = run(request_, Landscape())
    family = by_name(result, baselines.BEST_OFFLOAD)
    default = max(config.n_ubatch for config in family)
    least = {n: min(c.ram_expert_layers for c in family if c.n_ubatch == n) for n in {c.n_ubatch for c in family}}
    assert all(least[n] < least[default] for n in least if n != default)


def test_every_contending_baseline_is_looked_at_again(request_: SearchRequest) -> None:
    """One disturbed measurement does not choose the baseline to beat."""
    result, _ = run(request_, Landscape())
    best = min(r.turn_s for r in result.records if r.origin is Origin.BASELINE and r.turn_s is not None)
    looks = Counter(r.config for r in result.records if r.origin is Origin.BASELINE and r.turn_s is not None)
    near = {r.config for r in result.records if r.origin is Origin.BASELINE and r.turn_s and r.turn_s <= best * 1.2}
    assert near
    assert all(looks[config] == LOOKS for config in near)


@pytest.mark.parametrize("reason", [FailureReason.CRASHED, FailureReason.HUNG, FailureReason.OUT_OF_MEMORY])
def test_a_failing_configuration_costs_its_trial_only(request_: SearchRequest, reason: FailureReason) -> None:
    """Quantised caches break here; the search goes on, keeps the reason, and still finds the win."""
    broken: Broken = lambda config: reason if config.type_k is not KvType.F16 else None  # noqa: E731
    result, _ = run(request_, Landscape(broken=broken))
    failed = [record for record in result.records if record.measurement is None and record.fast_excess_bytes <= 0]
    assert failed
    assert all(record.config.type_k is not KvType.F16 for record in failed)
    assert all(str(reason) in (record.failure or "") for record in failed)
    assert result.verdict.kind is VerdictKind.CACHE_WINS


def test_nothing_runs_at_all(request_: SearchRequest) -> None:
    """An engine that never works is told as such, not as a score."""
    result, _ = run(request_, Landscape(broken=lambda config: FailureReason.LOAD_FAILED))
    assert result.verdict.kind is VerdictKind.NOTHING_RAN
    assert result.verdict.config is None


def test_without_baselines_nothing_is_claimed(request_: SearchRequest) -> None:
    """Where only the cache runs there is nothing to compare it with."""
    broken: Broken = lambda c: None if c.cache and c.cache.slots else FailureReason.CRASHED  # noqa: E731
    result, _ = run(request_, Landscape(broken=broken))
    assert result.verdict.kind is VerdictKind.NO_BASELINE
    assert result.verdict.config is None


def test_time_limits_follow_the_incumbent(request_: SearchRequest) -> None:
    """Baselines may be as slow as they are; a later trial is cut short at a multiple of the best one."""
    result, runner = run(replace(request_, longest_trial_s=500.0, shortest_limit_s=7.0), Landscape())
    first: dict[EngineConfig, float] = {}
    for config, limit_s in zip(runner.launched, runner.time_limits_s, strict=True):
        first.setdefault(config, limit_s)
    by_origin = [(record.origin, first[record.config]) for record in result.records if record.launched]
    assert all(limit > 500 for origin, limit in by_origin[:3] if origin is Origin.BASELINE)
    assert all(limit < 20 for origin, limit in by_origin if origin is not Origin.BASELINE)


def test_a_dense_model_is_searched_without_the_cache(request_: SearchRequest) -> None:
    """Threads, batch, KV and layers compete; the sentence says why the cache did not."""
    result, runner = run(request_, Landscape(), machine=machine_with(gpu(900)), model=dense_model())
    assert all(config.cache is None for config in runner.launched)
    assert result.verdict.kind in (VerdictKind.OTHER_SETTING_WINS, VerdictKind.NO_PROVEN_IMPROVEMENT)
    assert "dense" in result.verdict.sentence


def test_without_a_fast_tier_the_cpus_settings_are_searched(request_: SearchRequest) -> None:
    """The best threads are found and the sentence says what the cache needs."""
    result, runner = run(request_, Landscape(), machine=machine_with())
    assert all(config.device is None for config in runner.launched)
    assert result.records[0].name == baselines.STOCK_CPU
    assert result.verdict.config is not None
    assert result.verdict.config.n_threads == 4
    assert "fast tier" in result.verdict.sentence


def test_everything_on_the_device_leaves_the_cache_idle(request_: SearchRequest) -> None:
    """A device that holds the whole model: the best baseline is all on the device."""
    result, runner = run(request_, Landscape(), machine=machine_with(gpu(4096)))
    assert by_name(result, baselines.ALL_ON_DEVICE)[0].ram_expert_layers == 0
    assert all(config.cache is None for config in runner.launched)
    assert "nothing left to cache" in result.verdict.sentence


def test_emulated_figures_are_called_emulated(request_: SearchRequest) -> None:
    """Whatever the verdict, it says so."""
    emulated = gpu(512, "EMU0", "emulated accelerator, 16 GB/s link")
    result, _ = run(request_, Landscape(), machine=machine_with(emulated))
    assert "mulated" in result.verdict.sentence


def test_a_model_larger_than_memory_is_never_launched(request_: SearchRequest) -> None:
    """The error comes before the first launch, unless overcommitting is allowed."""
    machine = machine_with(gpu(500), ram_mib=600)
    runner = runner_for(machine, MODEL, Landscape())
    with pytest.raises(MoetuneError) as caught:
        search(request_, runner, machine, MODEL, Silent(), still)
    assert caught.value.code is ExitCode.MEMORY
    assert runner.launched == []
    result, _ = run(replace(request_, allow_overcommit=True), Landscape(), machine)
    assert result.verdict.baseline is not None


def test_a_context_beyond_the_models_is_an_error(request_: SearchRequest) -> None:
    """With the largest one that works."""
    with pytest.raises(MoetuneError, match="32768") as caught:
        run(replace(request_, n_ctx=65_536), Landscape())
    assert caught.value.code is ExitCode.USAGE


def bad_kv(*bad: KvType) -> Callable[[EngineConfig], float]:
    """What these types do to the model's predictions: far more than any level allows."""
    return lambda config: 0.5 if {config.type_k, config.type_v} & set(bad) else 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_a_faster_kv_type_outside_the_quality_gate_is_never_chosen(tmp_path: Path, seed: int) -> None:
    """Twice as fast and wrong: no winner, no baseline, no rival, no row of the table; and it is said."""
    request = request_for(tmp_path, seed=seed, kv_types=(KvType.F16, KvType.Q8_0, KvType.Q4_0))
    land = Landscape(quantised_kv_gain=2.0, kld=bad_kv(KvType.Q4_0, KvType.Q8_0), noise=0.01)
    notes: list[str] = []
    events = Silent()
    events.note = notes.append  # type: ignore[method-assign]
    runner = runner_for(MACHINE, MODEL, land)
    result = search(request, runner, MACHINE, MODEL, events, still)
    verdict = result.verdict
    assert verdict.kind is VerdictKind.CACHE_WINS
    assert result.race is not None
    chosen = [verdict.config, verdict.rival, *(arm.config for arm in result.race.arms), result.race.incumbent]
    assert {(c.type_k, c.type_v) for c in chosen if c is not None} == {(KvType.F16, KvType.F16)}
    assert any("quality not passed" in note and "mean KLD above 0.01" in note for note in notes)


def test_types_outside_the_gate_are_not_searched_on(request_: SearchRequest) -> None:
    """They are fastest by far: the first trial that leads with a pair of them has it measured, and none follows."""
    request = replace(request_, kv_types=(KvType.F16, KvType.Q4_0), n_trials=24)
    land = Landscape(quantised_kv_gain=2.0, kld=bad_kv(KvType.Q4_0), noise=0.001)
    result, runner = run(request, land)
    pairs = Counter((c.type_k, c.type_v) for c in dict.fromkeys(runner.launched) if KvType.Q4_0 in (c.type_k, c.type_v))
    # One that did not lead says nothing yet of its types.
    assert max(pairs.values()) <= 2
    left = [record for record in result.records if record.origin is not Origin.BASELINE and record.launched]
    assert len(left) >= request.n_trials - sum(pairs.values()) - request.patience


def test_a_faster_kv_type_inside_the_quality_gate_wins_with_its_figures(request_: SearchRequest) -> None:
    """The verdict says what the speed costs in quality, and only finalists' types were measured."""
    request = replace(request_, kv_types=(KvType.F16, KvType.Q8_0))
    land = Landscape(quantised_kv_gain=2.0, kld=bad_kv(KvType.Q4_0), noise=0.001)
    result, runner = run(request, land)
    config = result.verdict.config
    assert config is not None
    assert KvType.Q8_0 in (config.type_k, config.type_v)
    assert "against f16: KLD 0.0001" in result.verdict.sentence
    assert "same top token 99.9%" in result.verdict.sentence
    measured = {(o.type_k, o.type_v) for _, others, _ in runner.scored for o in others}
    tried = {(c.type_k, c.type_v) for c in runner.launched}
    assert measured - {(KvType.F16, KvType.F16)} <= tried


def test_a_baseline_of_a_less_strict_run_does_not_count(request_: SearchRequest) -> None:
    """The same study at another level: stock with the bad type was promoted then and is not to be beaten now."""
    lax = replace(request_, quality=QualityLevel.ANY, kv_types=(KvType.F16, KvType.Q4_0), n_trials=24)
    land = Landscape(quantised_kv_gain=2.0, kld=bad_kv(KvType.Q4_0))
    before, _ = run(lax, land)
    assert any(r.origin is Origin.BASELINE and r.config.type_v is KvType.Q4_0 for r in before.records)
    after, _ = run(replace(lax, quality=QualityLevel.NEAR_LOSSLESS), land)
    shown = [r.config for r in after.records if r.origin is Origin.BASELINE]
    assert {(c.type_k, c.type_v) for c in shown} == {(KvType.F16, KvType.F16)}
    assert after.verdict.config is not None
    assert after.verdict.config.type_v is KvType.F16


def test_only_kv_types_outside_the_gate_stop_a_search_at_once(request_: SearchRequest) -> None:
    """Nothing could be chosen in the end, so nothing is launched."""
    request = replace(request_, kv_types=(KvType.Q4_0,))
    runner = runner_for(MACHINE, MODEL, Landscape(kld=bad_kv(KvType.Q4_0)))
    with pytest.raises(MoetuneError, match=r"KV q4_0 against f16.*mean KLD above") as caught:
        search(request, runner, MACHINE, MODEL, Silent())
    assert caught.value.code is ExitCode.USAGE
    assert runner.launched == []
