"""Everything that can meet in one run, against stock llama.cpp bit for bit: every two values of these factors meet."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from pairwise import covering_rows
from replayer import Run
from scenario import Scenario, Step, assert_same_bits, assert_worked

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "demo": ("demo", {}),
    "mixed": ("qwen3moe", {"quant": "Q4_K", "quant_down": "Q6_K", "quant_odd": "Q8_0", "ff": 256}),
    "biased": ("gpt-oss", {}),
    "fused": ("gemma4", {"fused_gate_up": True}),
    "weighted before": ("llama4", {}),
    "latent attention": ("deepseek2", {}),
    "windowed": ("maple", {"quant": "Q4_0"}),
}
FACTORS: dict[str, Sequence[Any]] = {
    "model": tuple(MODELS),
    "sequences": (1, 2, 3, 5, 8, 16, 31, 32),
    "kv": ("f16", "q8_0", "q4_0"),
    "ubatch": (31, 32, 33, 64),
    "lora": ("none", "attention", "experts", "down", "both"),
    "observe": (0, 1, 3, 37),
    "memory": ("untouched", "shift", "copy", "rewind"),
    "mmap": (False, True),
    "tier": ("CPU", "EMU0", "EMU0 beside the dense part", "EMU0 with half the experts"),
    "path": ("host", "device", "auto"),
    "prefill": ("scheduler", "cold", "stream", "auto"),
    "prefill_heat": (0, 1),
    "ahead": (0, 1),
}
ROWS = covering_rows(FACTORS)
# What a run's result has most to do with, all of it crossed.
CROSSED = [
    dict(zip(FACTORS, values, strict=True))
    for values in itertools.product(
        ("mixed", "biased", "fused"),
        (1, 3, 31, 32),
        ("f16", "q4_0"),
        (31, 32, 33),
        ("none", "both"),
        (0, 3),
        ("untouched", "shift", "copy"),
        (False,),
        ("CPU", "EMU0 beside the dense part"),
        ("host", "device"),
        ("scheduler", "stream"),
        (0,),
        (1,),
    )
]


def _moves(row: dict[str, Any]) -> tuple[Step, ...]:
    if row["memory"] == "copy" and row["sequences"] > 1:
        return (("copy", 0, row["sequences"] - 1),)
    # Stock llama.cpp crashes when it shifts a quantised cache of latent attention.
    if row["memory"] == "shift" and (row["model"] != "latent attention" or row["kv"] == "f16"):
        return (("shift", 5),)
    return (("rewind", 3),) if row["memory"] == "rewind" else ()


def _scenario(row: dict[str, Any], model_of: Callable[..., str], adapter_of: Callable[..., str]) -> Scenario:
    """Slots fill; the adapter comes and goes; the memory changes; a last batch. Some tokens come one by one, so that
    every batch size leaves the cache something to do."""
    arch, changes = MODELS[row["model"]]
    model, sequences = model_of(arch, **changes), row["sequences"]
    kinds = {"none": (), "both": ("attention", "experts")}.get(row["lora"], (row["lora"],))
    scales = [1.0, 0.5][: len(kinds)]
    adapted: tuple[Step, ...] = (("adapt", *scales), ("decode", 3), ("adapt",)) if kinds else ()
    steps: tuple[Step, ...] = (
        ("prompt", 40 if sequences <= 3 else 8),
        ("decode", 4),
        ("alone", 0, 6),
        *adapted,
        *_moves(row),
        ("decode", 4),
        ("alone", sequences - 1, 4),
        ("batch", 3),
    )
    return Scenario(
        model,
        steps,
        sequences=sequences,
        n_ctx=1024 if sequences > 3 else 256,
        n_ubatch=row["ubatch"],
        kv=row["kv"],
        observe_every=row["observe"],
        loras=tuple(adapter_of(model, kind) for kind in kinds),
        mmap=row["mmap"],
        dense_on_device=row["tier"] in ("EMU0 beside the dense part", "EMU0 with half the experts"),
        experts_on_device=62 if row["tier"] == "EMU0 with half the experts" else 0,
    ).with_cache(path=row["path"], prefill=row["prefill"], prefill_heat=row["prefill_heat"], ahead=row["ahead"])


def _check(scenario: Scenario, tier: str, observed: int, stock: Run, cached: Run, emulated: Run) -> None:
    outcome = (cached if tier == "CPU" else emulated)(scenario)
    # Somebody who asks for the values of every few nodes gets each of them computed for all pairs.
    if observed not in (1, 3):
        assert_worked(outcome)
    assert_same_bits(stock(replace(scenario, cache=())), outcome)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_cache_changes_no_bit_when_two_things_meet(
    row: dict[str, Any],
    model_of: Callable[..., str],
    adapter_of: Callable[..., str],
    stock: Run,
    cached: Run,
    emulated: Run,
) -> None:
    """Models, sequences, KV types, batches, adapters, callbacks, shifts, copies, tiers and ways to hand things over."""
    _check(_scenario(row, model_of, adapter_of), row["tier"], row["observe"], stock, cached, emulated)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_cache_changes_no_bit_when_all_things_meet(
    part: int, model_of: Callable[..., str], adapter_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """The full product of the factors that interact most."""
    for row in CROSSED[part::8]:
        _check(_scenario(row, model_of, adapter_of), row["tier"], row["observe"], stock, cached, emulated)
