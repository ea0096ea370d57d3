"""Several contexts and several models in one process share the cache, and none of them notices."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replayer import Run
from scenario import Scenario

PROGRAM = Path(__file__).with_name("crowd.py")
TIERS = {
    "CPU": ("--fast-tier", "CPU"),
    "EMU0": ("--fast-tier", "EMU0", "--emulated", "desktop,vram_mib=96,scale=1,launch_us=0,link_latency_us=0"),
    # A link slow enough for promotions to be on their way most of the time.
    "EMU0 far away": ("--fast-tier", "EMU0", "--emulated", "desktop,vram_mib=96,scale=0.02"),
}


def _crowd(mode: str, scenarios: list[Scenario], tier: str, folder: Path) -> tuple[list[np.ndarray], dict[str, float]]:
    command = [sys.executable, str(PROGRAM), mode, str(folder), *TIERS[tier]]
    lines = "".join(scenario.to_json() + "\n" for scenario in scenarios)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    logits = [np.load(folder / f"{number}.npy") for number in range(len(scenarios))]
    return logits, json.loads(done.stdout.splitlines()[-1])


def _contexts(model: str, tier: str) -> list[Scenario]:
    steps = (("prompt", 40), ("decode", 80), ("batch", 3), ("decode", 80))
    several = (("prompt", 8), ("decode", 100))
    return [
        Scenario(model, steps, settled=False, dense_on_device=tier != "CPU"),
        Scenario(model, several, sequences=3, settled=False, dense_on_device=tier != "CPU"),
    ]


@pytest.mark.parametrize("tier", TIERS)
def test_contexts_of_one_model_compute_at_once(
    tier: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Two threads decode on one model, whose slots they share, while all settings change."""
    scenarios = _contexts(model_of("qwen3moe"), tier)
    logits, report = _crowd("together", scenarios, tier, tmp_path)
    assert report["changes"] > 20
    assert report["hits"] > 0
    for scenario, rows in zip(scenarios, logits, strict=True):
        assert np.array_equal(stock(scenario).logits, rows)


@pytest.mark.parametrize("tier", TIERS)
def test_two_models_do_not_disturb_each_other(
    tier: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """A model with biases and a fused one, of different widths and types, decode at once in one process."""
    scenarios = [
        *_contexts(model_of("gpt-oss"), tier),
        *_contexts(model_of("gemma4", "Q4_0", fused_gate_up=True, ff=64, experts=24), tier),
    ]
    logits, report = _crowd("together", scenarios, tier, tmp_path)
    assert report["changes"] > 20
    assert report["hits"] > 0
    for scenario, rows in zip(scenarios, logits, strict=True):
        assert np.array_equal(stock(scenario).logits, rows)


@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_contexts_and_models_may_end_in_any_order(
    tier: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Two contexts of one model and one of another: whoever is left computes on, right to the end."""
    first, second = model_of("qwen3moe"), model_of("gpt-oss")
    placed = tier != "CPU"
    scenarios = [Scenario(model, (), n_ctx=64, dense_on_device=placed) for model in (first, first, second)]
    logits, report = _crowd("orders", scenarios, tier, tmp_path)
    assert report["orders"] == 20
    assert report["layers_left"] == 0
    for scenario, rows in zip(scenarios, logits, strict=True):
        whole = stock(Scenario(scenario.model, (("prompt", 6), ("decode", 10)), n_ctx=64)).logits
        start = 0
        while start < len(rows):
            left = rows[start:]
            lived = next(n for n in range(len(whole), 0, -1) if np.array_equal(left[:n], whole[:n]))
            assert lived % 2 == 1  # the prompt's row, then two a round
            start += lived


@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_contexts_come_and_go_without_a_trace(
    tier: str, model_of: Callable[..., str], stock: Run, tmp_path: Path
) -> None:
    """Sixty contexts one after the other: the last one is right, and nothing has grown."""
    steps = (("prompt", 40), ("decode", 6), ("batch", 3))
    scenario = Scenario(model_of("qwen3moe"), steps, settled=False, dense_on_device=tier != "CPU")
    logits, report = _crowd("recreate", [scenario], tier, tmp_path)
    assert np.array_equal(stock(scenario).logits, logits[0])
    assert report["vram_grown_bytes"] == 0
    assert report["rss_grown_bytes"] < 8 << 20
