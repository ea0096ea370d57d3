"""Logits with the cache on against stock llama.cpp's: every bit, since both tiers compute with the CPU's kernels."""

from collections.abc import Callable

import numpy as np
import pytest

ARCHITECTURES = ["demo", "qwen3moe", "qwen2moe", "llama", "deepseek2", "glm4moe", "gpt-oss"]
# Every other shape of routed FFN that llama.cpp runs: fused gate and up, no gate, weights before the FFN, latent
# width, recurrent layers, experts in groups, clamped activations.
OTHER_SHAPES = [
    "bailingmoe2",
    "dots1",
    "gemma4",
    "grok",
    "grovemoe",
    "hunyuan-moe",
    "llama4",
    "minimax-m2",
    "nemotron_h_moe",
    "olmoe",
    "qwen35moe",
    "qwen3next",
    "step35",
]


@pytest.mark.parametrize("mapping", [(), ("--mmap",)], ids=["read", "mmap"])
@pytest.mark.parametrize("sequences", ["1", "3"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cache_changes_no_bit(
    arch: str, sequences: str, mapping: tuple[str, ...], model_of: Callable, run: Callable
) -> None:
    """Prefill, decode and a small batch, with hits and misses in both tiers, equal stock llama.cpp exactly."""
    model = model_of(arch)
    stock = run(model, "--sequences", sequences, *mapping)
    cached = run(model, "--sequences", sequences, *mapping, "--cache-device", "CPU", "--slots", "6")
    assert cached.counters["hits"] > 50
    assert cached.counters["misses"] > 50
    assert cached.counters["promotions"] > 6
    assert np.isfinite(stock.logits).all()
    assert np.array_equal(stock.logits, cached.logits)


@pytest.mark.parametrize("arch", OTHER_SHAPES)
def test_cache_changes_no_bit_for_other_shapes_of_ffn(arch: str, model_of: Callable, run: Callable) -> None:
    """Whether an FFN is recognised or runs node by node, the logits are stock llama.cpp's."""
    model = model_of(arch)
    stock = run(model, "--sequences", "2")
    cached = run(model, "--sequences", "2", "--cache-device", "CPU", "--slots", "6")
    assert np.array_equal(stock.logits, cached.logits)


@pytest.mark.parametrize("quant", ["F16", "Q4_0", "Q4_K", "Q6_K", "MXFP4", "IQ4_NL"])
def test_cache_changes_no_bit_for_any_quantisation(quant: str, model_of: Callable, run: Callable) -> None:
    """Expert slots hold every block format as it is in the file."""
    model = model_of("qwen3moe", quant, ff=256)
    stock = run(model)
    cached = run(model, "--cache-device", "CPU", "--slots", "5")
    assert cached.counters["hits"] > 0
    assert np.array_equal(stock.logits, cached.logits)


@pytest.mark.parametrize("policy", ["heat", "lru", "static"])
@pytest.mark.parametrize("slots", ["0", "1", "16"])
def test_cache_changes_no_bit_at_any_size(slots: str, policy: str, model_of: Callable, run: Callable) -> None:
    """Off, one slot, and all experts resident, under every policy."""
    model = model_of("qwen3moe")
    stock = run(model, "--sequences", "3")
    setting = ("--policy-set", f"policy={policy}")
    cached = run(model, "--sequences", "3", "--cache-device", "CPU", "--slots", slots, *setting)
    assert (cached.counters is None) == (slots == "0")
    assert np.array_equal(stock.logits, cached.logits)


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "llama4"])
@pytest.mark.parametrize("every", ["1", "2", "5"])
def test_cache_changes_no_bit_when_a_callback_cuts_the_graph(
    arch: str, every: str, model_of: Callable, run: Callable
) -> None:
    """Somebody who reads intermediate values gets splits of any shape; what is not a whole FFN runs as it stands."""
    model = model_of(arch)
    stock = run(model, "--observe-every", every)
    cached = run(model, "--observe-every", every, "--cache-device", "CPU", "--slots", "6")
    assert np.array_equal(stock.logits, cached.logits)


def test_byte_budget_becomes_slots_of_every_layer(model_of: Callable, run: Callable) -> None:
    """HOTCACHE_BYTES is shared out evenly and changes no bit either."""
    model = model_of("qwen3moe")
    stock = run(model)
    budget = ("--slots", "0", "--policy-set", f"bytes={4 * 5 * 104448}")  # 4 layers, 5 experts of 3 * 128 * 272 bytes
    cached = run(model, "--cache-device", "CPU", *budget)
    assert cached.counters["hits"] > 0
    assert np.array_equal(stock.logits, cached.logits)


@pytest.mark.parametrize("arch", ["demo", "qwen3moe", "gpt-oss", "qwen35moe"])
@pytest.mark.parametrize("slots", ["0", "6"])
def test_cache_on_an_accelerator_changes_no_bit(arch: str, slots: str, model_of: Callable, run: Callable) -> None:
    """Memory of its own and an asynchronous queue: the emulated accelerator computes what the CPU computes."""
    model = model_of(arch)
    stock = run(model, "--sequences", "2", "--kv", "q8_0")
    placed = ("--emulated", "desktop,vram_mib=64", "--device", "EMU0")
    cached = run(model, "--sequences", "2", "--kv", "q8_0", *placed, "--cache-device", "EMU0", "--slots", slots)
    if slots != "0":
        assert cached.counters["hits"] > 50
    assert np.array_equal(stock.logits, cached.logits)
