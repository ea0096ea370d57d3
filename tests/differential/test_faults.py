"""What goes wrong on a real machine gives an error or a smaller cache, never a wrong token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replayer import Replayer, Run
from scenario import Outcome, Scenario, Step, assert_same_bits, assert_worked

FAST = "desktop,vram_mib=96,scale=1,launch_us=0,link_latency_us=0"
WARM: tuple[Step, ...] = (("prompt", 40), ("decode", 10))
# More tries than any token needs while every so-many-th graph fails.
TRIES = 200


@pytest.fixture
def fragile(tmp_path: Path) -> Replayer:
    """A process of its own whose device may die with the test."""
    return Replayer(tmp_path, "--fast-tier", "EMU0", "--emulated", FAST)


def _assert_prefix(stock: Outcome, other: Outcome) -> None:
    """Every row that was delivered is right."""
    assert len(other.logits) <= len(stock.logits)
    assert np.array_equal(stock.logits[: len(other.logits)], other.logits)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_refused_allocations_mean_fewer_slots(
    every: int, model_of: Callable[..., str], stock: Run, emulated: Run
) -> None:
    """A device that gives no memory, or not always, costs slots and nothing else."""
    steps = (*WARM, ("fault", "EMU_REFUSE_ALLOC_EVERY", every), ("drop",), ("decode", 20), ("batch", 5))
    whole = (*steps, ("fault", "EMU_REFUSE_ALLOC_EVERY", 0), ("drop",), ("decode", 10))
    scenario = Scenario(model_of("qwen3moe"), whole)
    outcome = emulated(scenario)
    assert outcome.machine["refused_allocations"] > 0
    assert outcome.fewest_slots == 6
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


def test_a_full_device_means_no_slots(model_of: Callable[..., str], stock: Run, emulated: Run) -> None:
    """Another program has taken all memory: the cache waits without slots, and the model runs as if it were off."""
    steps = (("fault", "EMU_VRAM_STOLEN_MIB", 1000), *WARM, ("look",), ("fault", "EMU_VRAM_STOLEN_MIB", 0))
    scenario = Scenario(model_of("qwen3moe"), (*steps, ("drop",), ("decode", 20)))
    outcome = emulated(scenario)
    assert outcome.slot_bytes[0] == 0
    assert outcome.slot_bytes[-1] > 0
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize(("dense_on_device", "vram_mib"), [(False, 4), (True, 7)])
def test_a_nearly_full_device_means_fewer_slots(
    dense_on_device: bool, vram_mib: int, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Room for some of the slots asked for."""
    replay = Replayer(tmp_path, "--fast-tier", "EMU0", "--emulated", FAST.replace("96", str(vram_mib)))
    scenario = Scenario(model_of("qwen3moe"), sequences=2, dense_on_device=dense_on_device)
    outcome = replay(scenario.with_cache(slots=16))
    replay.close()
    assert outcome.fewest_slots < 16
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


def test_slots_are_given_back_when_memory_runs_short(model_of: Callable[..., str], stock: Run, emulated: Run) -> None:
    """Another program takes memory until less than the reserve is free: slots go, tokens stay right."""
    slots_bytes = 4 * 12 * 3 * 128 * 272
    steps: tuple[Step, ...] = (*WARM, ("decode", 40), ("look",))
    # Of 96 MiB, 90 go to somebody else: what slots hold no longer leaves 4 MiB free.
    steps = (*steps, ("fault", "EMU_VRAM_STOLEN_MIB", 90), ("decode", 300), ("look",), ("batch", 5))
    scenario = Scenario(model_of("qwen3moe"), (*steps, ("fault", "EMU_VRAM_STOLEN_MIB", 0)), n_ctx=1024)
    outcome = emulated(scenario.with_cache(slots=12, reserve=4 << 20))
    assert_same_bits(stock(scenario), outcome)
    before, after, _ = outcome.slot_bytes
    assert before == slots_bytes
    assert after < before


# A token takes 4 graphs of the device where only experts are there, 13 where the dense part is, too.
@pytest.mark.parametrize(("dense_on_device", "every"), [(False, 5), (False, 17), (True, 17), (True, 61)])
def test_graphs_that_fail_are_errors_and_nothing_else(
    dense_on_device: bool, every: int, model_of: Callable[..., str], stock: Run, emulated: Run
) -> None:
    """llama_decode reports what the device could not do; the same token, asked for again, comes out right."""
    fail = "EMU_FAIL_GRAPH_EVERY"
    steps = (*WARM, ("fault", fail, every), ("insist", 12, TRIES), ("fault", fail, 0))
    scenario = Scenario(model_of("qwen3moe"), (*steps, ("decode", 12), ("batch", 3)), sequences=2)
    outcome = emulated(replace(scenario, dense_on_device=dense_on_device))
    assert outcome.machine["failed_graphs"] > 0
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("dense_on_device", [False, True])
@pytest.mark.parametrize("after", [1, 7, 100])
def test_a_device_that_disappears_is_an_error(
    after: int, dense_on_device: bool, model_of: Callable[..., str], stock: Run, fragile: Replayer
) -> None:
    """In the middle of decoding, for good: what was delivered is right, what follows is an error, nothing crashes."""
    lost = ("fault", "EMU_LOST_AFTER_GRAPHS", after)
    steps = (*WARM, lost, ("insist", 30, 3))
    scenario = Scenario(model_of("qwen3moe"), steps)
    outcome = fragile(replace(scenario, dense_on_device=dense_on_device))
    assert outcome.machine["failed_graphs"] > 0
    _assert_prefix(stock(scenario), outcome)
    if dense_on_device:
        assert outcome.failures == 3
    # With nothing placed there and the cache off, the computer goes on without it.
    after_all = Scenario(model_of("gpt-oss"), sequences=2)
    assert_same_bits(stock(after_all), fragile(after_all.with_cache(slots=0)))
    fragile.close()


@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_an_aborted_token_can_be_decoded_again(
    tier: str, model_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """Somebody stops llama_decode half way, a dozen times; no slot stays pinned, no token comes out wrong."""
    steps = (*WARM, *((("abort",), ("decode", 2)) * 12), ("batch", 5))
    plain = (*WARM, *((("decode", 1), ("decode", 2)) * 12), ("batch", 5))
    scenario = Scenario(model_of("qwen3moe"), steps)
    outcome = (cached if tier == "CPU" else emulated)(scenario)
    assert outcome.failures == 12
    assert_worked(outcome)
    assert_same_bits(stock(replace(scenario, steps=plain)), outcome)
