"""Configurations in words: short where all is as usual, and never the same for two that differ."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_space import WORLDS, points, space_of

from moetune.autotune.words import describe
from moetune.engine.config import Ahead, CacheKnobs, EngineConfig, FlashAttention, LoadMode, Policy, Spread

STOCK = EngineConfig(n_ctx=2048, n_threads=4)
ON_DEVICE = replace(STOCK, device="CUDA0", gpu_layers=9, ram_expert_layers=8)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (STOCK, "stock, 4 threads, ubatch 512"),
        (replace(STOCK, n_threads_batch=8), "stock, 4 threads (8 for prompts), ubatch 512"),
        (replace(STOCK, repack=False), "stock, 4 threads, ubatch 512, no repack"),
        (replace(STOCK, load_mode=LoadMode.NONE), "stock, 4 threads, ubatch 512, read, not mapped"),
        (replace(STOCK, flash_attn=FlashAttention.OFF), "stock, 4 threads, ubatch 512, flash attention off"),
        (replace(ON_DEVICE, no_host=True), "stock, 4 threads, ubatch 512, packed for the CPU"),
        (
            replace(ON_DEVICE, more_devices=("CUDA1",), tensor_split=(5, 4), ram_expert_layers=3),
            "stock, experts of 3 layers in RAM, split CUDA0:5 CUDA1:4, 4 threads, ubatch 512",
        ),
        (
            replace(ON_DEVICE, cache=CacheKnobs(slots=9, policy=Policy.LRU, ahead=Ahead.NEVER, repack=True)),
            "9 slots lru/1 tok ×1.25 +2, never ahead, misses packed, 4 threads, ubatch 512",
        ),
        (
            replace(ON_DEVICE, cache=CacheKnobs(0, budget_bytes=3 << 20, spread=Spread.COVERAGE, policy=Policy.STATIC)),
            "3.0 MiB of slots by coverage, static, 4 threads, ubatch 512",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_what_is_unusual_is_said(config: EngineConfig, words: str) -> None:
    """In the order of what matters most."""
    assert describe(config, 8) == words


@pytest.mark.parametrize("world", ["cache", "everything fits", "no device", "cpu as its own tier", "mla"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_two_points_that_differ_read_differently(world: str, data: st.DataObject) -> None:
    """A knob that the words leave out would show two trials as one."""
    machine, model, device = WORLDS[world]
    space, memory = space_of(machine, model, device)
    one = data.draw(points(space))
    name = data.draw(st.sampled_from(sorted(one)))
    other = one | {name: data.draw(points(space))[name]}
    first, second = (space.config_of(point, memory) for point in (one, other))
    assert (first == second) == (describe(first, model.n_layers) == describe(second, model.n_layers))


def test_a_recording_is_not_spelt_out(tmp_path: Path) -> None:
    """Its path would fill the line."""
    routed = replace(ON_DEVICE, cache=CacheKnobs(slots=9, routing=str(tmp_path)))
    assert str(tmp_path) not in describe(routed, 8)
