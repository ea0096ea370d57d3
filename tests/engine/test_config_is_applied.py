"""What a configuration says is what llama.cpp and the plugin do: seen from inside the process that runs it."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from moetune.autotune.memory import MemoryModel
from moetune.autotune.tier import FastTier
from moetune.demo import demo_model_path
from moetune.engine.config import (
    Ahead,
    CacheKnobs,
    EngineConfig,
    FlashAttention,
    KvType,
    LoadMode,
    Policy,
    PromptWay,
    SplitMode,
    Spread,
)
from moetune.engine.model import read_model

CONFIG = TypeAdapter(EngineConfig)
PROGRAM = Path(__file__).with_name("applied.py")
VRAM_MIB = 48
TWO = f"desktop,vram_mib={VRAM_MIB},scale=1,launch_us=0,link_latency_us=0,devices=2"
STOCK = EngineConfig(n_ctx=256, n_threads=1, n_ubatch=64, repack=False)
ON_DEVICE = replace(STOCK, device="EMU0", gpu_layers=5, ram_expert_layers=4)
# Layers 0 and 1 on the first device, 2, 3 and the output on the second.
SPLIT = replace(ON_DEVICE, more_devices=("EMU1",), tensor_split=(2, 3))
CACHED = replace(ON_DEVICE, cache=CacheKnobs(slots=8))
MIB = 1 << 20


@dataclass(frozen=True)
class Applied:
    """What was found, and logits [steps, vocabulary]."""

    found: dict[str, Any]
    logits: np.ndarray

    @property
    def log(self) -> str:
        return str(self.found["log"])

    def layers_on(self, device: str) -> list[int]:
        return [int(n) for n in re.findall(rf"layer\s+(\d+) assigned to device {device},", self.log)]

    def weights_mib(self) -> dict[str, float]:
        found = re.findall(r"load_tensors:\s+(\S+) model buffer size =\s+([\d.]+) MiB", self.log)
        return {name: float(size) for name, size in found}


def run(tmp_path: Path, config: EngineConfig, emulate: str | None = TWO) -> Applied:
    logits = tmp_path / "logits.npy"
    asked = {
        "model": str(demo_model_path()),
        "emulate": emulate,
        "logits": str(logits),
        "config": CONFIG.dump_python(config, mode="json"),
    }
    done = subprocess.run([sys.executable, PROGRAM, json.dumps(asked)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Applied(json.loads(done.stdout.splitlines()[-1]), np.load(logits))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Stock llama.cpp on the CPU."""
    return run(tmp_path_factory.mktemp("reference"), STOCK, emulate=None).logits


def test_prompts_have_threads_of_their_own(tmp_path: Path) -> None:
    """The batch's threads are the others' unless they are named."""
    assert run(tmp_path, replace(STOCK, n_threads=2, n_threads_batch=1), None).found["threads"] == [2, 1]
    assert run(tmp_path, replace(STOCK, n_threads=2), None).found["threads"] == [2, 2]


@pytest.mark.parametrize("mode", LoadMode)
def test_the_load_mode_is_the_one_asked_for(tmp_path: Path, reference: np.ndarray, mode: LoadMode) -> None:
    """llama.cpp names it, and only a memory map leaves the file mapped."""
    applied = run(tmp_path, replace(STOCK, load_mode=mode), None)
    assert f"(load_mode = {mode})" in applied.log
    assert applied.found["mapped"] == (mode in (LoadMode.MMAP, LoadMode.MMAP_MLOCK))
    assert np.array_equal(applied.logits, reference)


@pytest.mark.parametrize(
    ("changes", "buffer"),
    [
        ({"load_mode": LoadMode.MMAP}, "CPU_Mapped"),
        ({"load_mode": LoadMode.NONE}, "EMU_Host"),
        ({"load_mode": LoadMode.NONE, "no_host": True}, "CPU"),
        ({"load_mode": LoadMode.NONE, "repack": True}, "EMU_Host"),
        ({"repack": True}, "CPU_Mapped"),
        ({"no_host": True, "repack": True}, "CPU_REPACK"),
    ],
    ids=str,
)
def test_weights_in_ram_lie_where_the_configuration_says(tmp_path: Path, changes: dict[str, Any], buffer: str) -> None:
    """Beside a device the packed layout takes no_host; else memory is pinned or mapped whatever `repack` says."""
    weights = run(tmp_path, replace(ON_DEVICE, **changes)).weights_mib()
    assert max((name for name in weights if not name.startswith("EMU0")), key=lambda name: weights[name]) == buffer


def test_flash_attention_can_be_forced_off_and_on(tmp_path: Path, reference: np.ndarray) -> None:
    """Off gives other roundings and larger buffers; on is what auto finds here."""
    on, off = (run(tmp_path, replace(STOCK, flash_attn=f), None) for f in (FlashAttention.ON, FlashAttention.OFF))
    assert "flash_attn            = enabled" in on.log
    assert "flash_attn            = disabled" in off.log
    assert np.array_equal(on.logits, reference)
    assert not np.array_equal(off.logits, reference)
    assert _kld(reference, off.logits) < 1e-2


@pytest.mark.parametrize(
    ("config", "first", "second"),
    [
        (SPLIT, [0, 1], [2, 3, 4]),
        (replace(SPLIT, tensor_split=(4, 1)), [0, 1, 2, 3], [4]),
        (replace(SPLIT, gpu_layers=3, tensor_split=(1, 2)), [2], [3, 4]),
        (replace(SPLIT, device="EMU1", more_devices=("EMU0",), ram_expert_layers=0), [2, 3, 4], [0, 1]),
        (replace(SPLIT, cache=CacheKnobs(slots=8)), [0, 1], [2, 3, 4]),
        (replace(SPLIT, cache=CacheKnobs(slots=32, ahead=Ahead.ALWAYS)), [0, 1], [2, 3, 4]),
        (
            replace(SPLIT, device="EMU1", more_devices=("EMU0",), cache=CacheKnobs(slots=8)),
            [2, 3, 4],
            [0, 1],
        ),
    ],
    ids=["split", "4:1", "half", "swapped", "cache", "cache-ahead", "cache-on-the-other"],
)
def test_two_devices_give_the_logits_of_the_cpu(
    tmp_path: Path, reference: np.ndarray, config: EngineConfig, first: list[int], second: list[int]
) -> None:
    """Layers lie where the split says, each device holds some, and every bit is the same, cache or not."""
    applied = run(tmp_path, config)
    assert (applied.layers_on("EMU0"), applied.layers_on("EMU1")) == (first, second)
    assert min(applied.found["used"].values()) > 0
    assert (applied.found["hits"] > 0) == config.has_slots
    assert np.array_equal(applied.logits, reference)


def test_slots_lie_on_the_device_that_is_named_first(tmp_path: Path) -> None:
    """Whichever of two it is."""
    for device, other in (("EMU0", "EMU1"), ("EMU1", "EMU0")):
        bare = replace(SPLIT, device=device, more_devices=(other,), cache=CacheKnobs(slots=0))
        without = run(tmp_path, bare).found["used"]
        used = run(tmp_path, replace(bare, cache=CacheKnobs(slots=16))).found["used"]
        assert used[device] - without[device] > 2 * MIB
        assert used[other] == without[other]


def test_a_device_without_room_fails_alone(tmp_path: Path) -> None:
    """Each emulated device has memory of its own: the second one is full while the first would have room."""
    tight = TWO.replace(f"vram_mib={VRAM_MIB}", "vram_mib=5")
    whole = replace(SPLIT, ram_expert_layers=0)
    run(tmp_path, whole, tight)
    with pytest.raises(AssertionError, match="EMU1"):
        run(tmp_path, replace(whole, tensor_split=(0, 5)), tight)


def test_rows_are_asked_for_where_the_backend_cannot_split_them(tmp_path: Path) -> None:
    """llama.cpp refuses by itself, naming the device, so the mode did reach it."""
    with pytest.raises(AssertionError, match="EMU0 does not support split buffers"):
        run(tmp_path, replace(SPLIT, split_mode=SplitMode.ROW))


def test_the_reserve_is_kept_free_of_slots(tmp_path: Path) -> None:
    """With all but 2 MiB reserved, only slots that fit into the rest come up."""
    free = run(tmp_path, replace(CACHED, cache=CacheKnobs(slots=32))).found
    assert set(free["slots"].values()) == {32}
    reserve = VRAM_MIB * MIB - free["used"]["EMU0"] + 2 * MIB
    kept = run(tmp_path, replace(CACHED, cache=CacheKnobs(slots=32, reserve_bytes=reserve))).found
    assert 0 < min(kept["slots"].values()) < 32
    assert kept["used"]["EMU0"] <= VRAM_MIB * MIB - reserve


def test_ahead_prefill_and_packed_misses_reach_the_plugin(tmp_path: Path, reference: np.ndarray) -> None:
    """Each shows in the counters of what it changes."""
    ahead = {a: run(tmp_path, replace(CACHED, cache=CacheKnobs(slots=32, ahead=a))).found["ahead"] for a in Ahead}
    assert ahead[Ahead.NEVER] == 0 < ahead[Ahead.ALWAYS]
    ways = {
        w: run(tmp_path, replace(CACHED, cache=CacheKnobs(slots=8, prefill=w))).found["streamed"] for w in PromptWay
    }
    assert ways[PromptWay.COLD] == ways[PromptWay.SCHEDULER] == 0 < ways[PromptWay.STREAM]
    assert run(tmp_path, CACHED).found["repacked"] == 0
    packed = run(tmp_path, replace(CACHED, cache=CacheKnobs(slots=8, repack=True)))
    assert packed.found["repacked"] > 0


def test_a_budget_is_spread_over_the_layers(tmp_path: Path) -> None:
    """In bytes, without a number of slots; a static set stays what first filled it."""
    one = sum(layer.expert_bytes for layer in read_model(demo_model_path()).layers)
    knobs = CacheKnobs(slots=0, budget_bytes=10 * one, spread=Spread.COVERAGE, policy=Policy.STATIC)
    slots = run(tmp_path, replace(CACHED, cache=knobs)).found["slots"]
    assert 8 * 4 <= sum(slots.values()) <= 10 * 4


@pytest.mark.parametrize(
    "config",
    [
        ON_DEVICE,
        replace(ON_DEVICE, flash_attn=FlashAttention.OFF, n_ctx=1024),
        replace(ON_DEVICE, flash_attn=FlashAttention.OFF, n_ctx=1024, n_ubatch=256),
        replace(ON_DEVICE, n_ctx=1024, type_k=KvType.Q8_0, type_v=KvType.Q8_0),
        SPLIT,
        replace(SPLIT, ram_expert_layers=2),
        replace(SPLIT, ram_expert_layers=0, tensor_split=(4, 1)),
        replace(SPLIT, cache=CacheKnobs(slots=8)),
        replace(SPLIT, device="EMU1", more_devices=("EMU0",), cache=CacheKnobs(slots=8)),
        replace(CACHED, cache=CacheKnobs(slots=8, prefill=PromptWay.SCHEDULER)),
    ],
    ids=lambda config: str(abs(hash(config)))[:4],
)
def test_predicted_memory_covers_every_device(tmp_path: Path, config: EngineConfig) -> None:
    """What is known is there, and the estimate of buffers is enough, on the first device and on the second."""
    used = run(tmp_path, config).found["used"]
    tiers = [FastTier(f"EMU{i}", "emulated", VRAM_MIB * MIB, VRAM_MIB * MIB, True, False) for i in range(2)]
    memory = MemoryModel(read_model(demo_model_path()), tiers[0], 1 << 40, more_tiers=(tiers[1],))
    footprint = memory.footprint(config)
    assert footprint.fast_bytes - footprint.guessed_bytes <= used[config.device] + MIB // 4
    assert used[config.device] <= footprint.fast_bytes
    for name, predicted in zip(config.more_devices, footprint.more_bytes, strict=True):
        assert used[name] <= predicted


def _kld(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence over the steps, nats."""
    p, q = (row - np.logaddexp.reduce(row, axis=1, keepdims=True) for row in (reference, other))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))
