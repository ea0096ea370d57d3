"""Every field of a configuration says what it takes to change it, and every knob of the cache reaches the plugin."""

from dataclasses import dataclass, fields, replace
from typing import Annotated

import pytest

from moetune.engine.config import (
    Ahead,
    CacheKnobs,
    Change,
    EngineConfig,
    FlashAttention,
    KvType,
    LoadMode,
    Policy,
    PromptWay,
    SplitMode,
    Spread,
    changes,
)
from moetune.engine.library import cache_settings

USUAL = EngineConfig(n_ctx=512, n_threads=4, device="CUDA0", cache=CacheKnobs(slots=4))
OTHER = EngineConfig(
    n_ctx=1024,
    n_threads=3,
    n_ubatch=64,
    type_k=KvType.Q8_0,
    type_v=KvType.Q8_0,
    device="CUDA1",
    gpu_layers=3,
    ram_expert_layers=2,
    cache=CacheKnobs(slots=5),
    repack=False,
    load_mode=LoadMode.NONE,
    no_host=True,
    n_threads_batch=7,
    flash_attn=FlashAttention.OFF,
    more_devices=("CUDA2",),
    tensor_split=(1, 2),
    split_mode=SplitMode.ROW,
)
OTHER_KNOBS = CacheKnobs(
    slots=9,
    interval_tokens=2,
    hysteresis=1.5,
    promotions=3,
    policy=Policy.LRU,
    min_sightings=4,
    dwell_tokens=5,
    half_life_tokens=6.0,
    budget_bytes=7,
    spread=Spread.COVERAGE,
    whole_layers=8,
    routing="r",
    workload="w",
    prefill=PromptWay.COLD,
    repack=True,
    guard=True,
    reserve_bytes=10,
    ahead=Ahead.NEVER,
)


def test_every_field_says_what_it_takes_to_change_it() -> None:
    """No more and no fewer than the fields there are; llama.cpp's own cost is in the three answers."""
    assert changes(EngineConfig).keys() == {field.name for field in fields(EngineConfig)}
    of = {change: {name for name, takes in changes(EngineConfig).items() if takes is change} for change in Change}
    assert of[Change.LIVE] == {"n_threads", "n_threads_batch", "cache"}
    assert of[Change.CONTEXT] == {"n_ctx", "n_ubatch", "type_k", "type_v", "flash_attn"}


def test_a_field_that_does_not_say_it_is_refused() -> None:
    """Neither silence nor two answers."""

    @dataclass
    class Silent:
        n_ctx: int

    @dataclass
    class Undecided:
        n_ctx: Annotated[int, Change.LIVE, Change.RELOAD]

    for config_type in (Silent, Undecided):
        with pytest.raises(TypeError, match=r"n_ctx must say"):
            changes(config_type)


@pytest.mark.parametrize("name", [field.name for field in fields(EngineConfig)])
def test_a_change_costs_what_its_field_says(name: str) -> None:
    """A live one leaves placement and context alone, another changes exactly one of them."""
    changed = replace(USUAL, **{name: getattr(OTHER, name)})
    assert changed != USUAL
    takes = changes(EngineConfig)[name]
    assert (changed.placement != USUAL.placement) == (takes is Change.RELOAD)
    assert (changed.context != USUAL.context) == (takes is Change.CONTEXT)


def test_the_plugin_itself_comes_and_goes_with_a_reload() -> None:
    """Stock llama.cpp never runs beside it."""
    assert replace(USUAL, cache=None).placement != USUAL.placement


@pytest.mark.parametrize("name", [field.name for field in fields(CacheKnobs)])
def test_every_knob_of_the_cache_is_a_setting_of_the_plugin(name: str) -> None:
    """Changing a knob changes exactly one setting."""
    usual = CacheKnobs(slots=1)
    changed = replace(usual, **{name: getattr(OTHER_KNOBS, name)})
    assert changed != usual
    before, after = cache_settings(usual), cache_settings(changed)
    assert sum(before[key] != after[key] for key in before) == 1
