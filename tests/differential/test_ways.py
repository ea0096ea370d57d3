"""Every way the engine can take is the one it was asked to take, by its own counters, and changes no bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replayer import Replayer, Run
from scenario import Scenario, assert_same_bits, assert_same_distribution, assert_worked

from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_file import encode

LONG: tuple[tuple[str, int], ...] = (("prompt", 64), ("decode", 40), ("batch", 5))


def on_device(model: str, **settings: str | int) -> Scenario:
    return Scenario(model, LONG, dense_on_device=True, n_ubatch=64).with_cache(path="device", **settings)


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "deepseek2", "llama4", "grovemoe", "nemotron_h_moe"])
def test_activations_stay_on_the_device(arch: str, model_of: Callable[..., str], stock: Run, emulated: Run) -> None:
    """Every step is a device step, every prompt is streamed when told to."""
    scenario = on_device(model_of(arch), prefill="stream")
    outcome = emulated(scenario)
    assert outcome.counters
    assert outcome.counters["device_steps"] == outcome.counters["steps"] > 0
    assert outcome.counters["streamed_steps"] == outcome.counters["prompt_steps"] > 0
    assert outcome.counters["streamed_bytes"] > 0
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "deepseek2", "grovemoe", "nemotron_h_moe"])
@pytest.mark.parametrize("slots", [1, 6, 16])
def test_what_is_started_ahead_changes_no_bit(
    slots: int, arch: str, model_of: Callable[..., str], stock: Run, emulated: Run
) -> None:
    """One slot, so that nearly all that was computed ahead is overwritten; some; and all experts resident."""
    scenario = on_device(model_of(arch), ahead=1, slots=slots)
    outcome = emulated(scenario)
    assert outcome.counters
    assert outcome.counters["ahead_steps"] > 20
    assert_same_bits(stock(scenario), outcome)


def test_nothing_is_started_ahead_unless_it_hits(model_of: Callable[..., str], stock: Run, emulated: Run) -> None:
    """By itself the engine does so where nearly every pair hits, and nowhere else."""
    for slots, expected in ((2, False), (16, True)):
        scenario = on_device(model_of("qwen3moe"), slots=slots)
        outcome = emulated(scenario)
        assert outcome.counters
        assert (outcome.counters["ahead_steps"] > 0) == expected
        assert_same_bits(stock(scenario), outcome)


def test_host_path_is_taken_when_asked_for(model_of: Callable[..., str], stock: Run, emulated: Run) -> None:
    """Even where the activations could stay on the device."""
    scenario = on_device(model_of("qwen3moe")).with_cache(path="host")
    outcome = emulated(scenario)
    assert outcome.counters
    assert outcome.counters["device_steps"] == 0 < outcome.counters["steps"]
    assert_same_bits(stock(scenario), outcome)


def test_misses_from_the_packed_copy_are_stock_llama_cpps_own(
    model_of: Callable[..., str], stock: Run, cached: Run
) -> None:
    """Without slots every bit is stock llama.cpp's in its packed layout; with them, hits round as plain weights do."""
    model = model_of("qwen3moe", "Q4_0", ff=256)
    scenario = Scenario(model, (("decode", 32),), packed=True)
    for slots in (0, 6):
        outcome = cached(scenario.with_cache(repack=1, slots=slots))
        assert outcome.counters
        assert outcome.counters["repacked_bytes"] > 0
        assert (outcome.counters["hits"] > 0) == (slots > 0)
        if slots:
            assert_same_distribution(stock(scenario), outcome)
        else:
            assert_same_bits(stock(scenario), outcome)


def test_recorded_routing_fills_the_slots_and_spreads_them(
    model_of: Callable[..., str], stock: Run, cached: Run, tmp_path: Path
) -> None:
    """Slots hold what the recording calls hot, without a promotion by sight; layers get what they deserve."""
    model = model_of("qwen3moe")
    rng = np.random.default_rng(3)
    # The first two layers use four experts only, the last two all sixteen alike.
    ids = tuple(np.argsort(rng.random((200, 4 if i < 2 else 16)), axis=1)[:, :4].astype("u1") for i in range(4))
    layers = tuple(RoutedLayer(index=i, n_expert=16, n_used=4) for i in range(4))
    profile = tmp_path / "routing"
    profile.write_bytes(encode(Routing("0" * 32, layers, (WorkloadRouting("mail", ids),))))
    scenario = Scenario(model, (("decode", 6),)).with_cache(slots=0, bytes=4 * 6 * 3 * 128 * 272, promotions=0)
    seeded = cached(scenario.with_cache(profile=str(profile), spread="coverage"))
    assert seeded.counters
    assert seeded.counters["promotions"] > 0
    assert seeded.fewest_slots < 6
    assert_same_bits(stock(scenario), seeded)


def test_another_profile_may_lack_the_last_ones_workload(
    model_of: Callable[..., str], stock: Run, cached: Run, tmp_path: Path
) -> None:
    """Trials with recorded routing follow one another in one process."""
    layers = tuple(RoutedLayer(index=i, n_expert=16, n_used=4) for i in range(4))
    ids = tuple(np.tile(np.arange(4, dtype="u1"), (20, 1)) for _ in layers)
    for name in ("mail", "code"):
        (tmp_path / name).write_bytes(encode(Routing("0" * 32, layers, (WorkloadRouting(name, ids),))))
    used = [("apply", str(tmp_path / name), name) for name in ("mail", "code")]
    scenario = Scenario(model_of("qwen3moe"), (used[0], ("decode", 6), used[1], ("decode", 6)))
    outcome = cached(scenario)
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


def test_the_guard_switches_off_what_does_not_pay(model_of: Callable[..., str], stock: Run, tmp_path: Path) -> None:
    """A device whose every launch takes two milliseconds: the cache costs more, and llama.cpp goes on without it."""
    slow = "desktop,vram_mib=96,scale=1,launch_us=2000,link_latency_us=0"
    replayer = Replayer(tmp_path / "slow", "--fast-tier", "EMU0", "--emulated", slow)
    scenario = Scenario(model_of("qwen3moe"), (("decode", 90), ("batch", 3), ("decode", 20))).with_cache(guard=1)
    outcome = replayer(scenario)
    replayer.close()
    assert outcome.counters
    assert outcome.counters["plain_steps"] > 0
    # llama.cpp asks whose a product is when it builds a graph: for the batch, at the latest.
    assert 0 < outcome.counters["steps"] <= 90 * 4
    assert outcome.counters["layers_off"] == 4
    assert_same_bits(stock(scenario), outcome)
