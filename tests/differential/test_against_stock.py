"""Logits with the cache on against stock llama.cpp's: every bit, since both tiers compute with the CPU's kernels."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from replayer import Run
from scenario import Scenario, assert_same_bits, assert_worked, kl_divergence

# Every shape of routed FFN that llama.cpp runs, and that the cache takes apart.
RECOGNISED: dict[str, tuple[str, dict[str, object]]] = {
    "demo": ("demo", {}),
    # separate gate and up
    "qwen3moe": ("qwen3moe", {}),
    "qwen2moe": ("qwen2moe", {}),
    "llama": ("llama", {}),
    "olmoe": ("olmoe", {}),
    "dots1": ("dots1", {}),
    "bailingmoe2": ("bailingmoe2", {}),
    "glm4moe": ("glm4moe", {}),
    "minimax-m2": ("minimax-m2", {}),
    "hunyuan-moe": ("hunyuan-moe", {}),
    "deepseek2": ("deepseek2", {}),
    # fused gate and up
    "cohere2moe fused": ("cohere2moe", {"fused_gate_up": True}),
    "deepseek2 fused": ("deepseek2", {"fused_gate_up": True}),
    "gemma4 fused": ("gemma4", {"fused_gate_up": True}),
    "qwen35moe fused": ("qwen35moe", {"fused_gate_up": True}),
    "qwen3next fused": ("qwen3next", {"fused_gate_up": True}),
    # other activations: GEGLU, ReGLU, clamped in four operations or in one, bounded, biased
    "gemma4": ("gemma4", {}),
    "grok": ("grok", {}),
    "smallthinker": ("smallthinker", {}),
    "step35": ("step35", {}),
    "maple": ("maple", {}),
    "kimi-k3": ("kimi-k3", {}),
    "gpt-oss": ("gpt-oss", {}),
    # no gate, a width of the experts' own
    "nemotron_h_moe": ("nemotron_h_moe", {}),
    "nemotron_h_moe latent": ("nemotron_h_moe", {"latent": 64}),
    "kimi-k3 latent": ("kimi-k3", {"latent": 64}),
    # weights before the FFN, experts in groups, chosen by token, recurrent layers, a single expert
    "llama4": ("llama4", {}),
    "grovemoe": ("grovemoe", {}),
    "deepseek4": ("deepseek4", {}),
    "cohere2moe": ("cohere2moe", {}),
    "qwen35moe": ("qwen35moe", {}),
    "qwen3next": ("qwen3next", {}),
    "one of llama4": ("llama4", {"used": 1}),
    "one of qwen3moe": ("qwen3moe", {"used": 1}),
    # two types in one layer, others in the next
    "mixed": ("qwen3moe", {"quant": "Q4_K", "quant_down": "Q6_K", "quant_odd": "Q8_0", "ff": 256}),
    "mixed fused": (
        "deepseek2",
        {"quant": "Q4_K", "quant_down": "Q8_0", "quant_odd": "IQ4_NL", "ff": 256, "fused_gate_up": True},
    ),
}
# Shapes the cache leaves whole, because values of all pairs meet before the weighting: scales by expert.
LEFT_WHOLE: dict[str, tuple[str, dict[str, object]]] = {
    "scaled": ("qwen3moe", {"expert_scales": True}),
    "scaled fused": ("deepseek2", {"expert_scales": True, "fused_gate_up": True}),
    "NVFP4": ("qwen3moe", {"quant": "NVFP4", "expert_scales": True}),
}


@pytest.mark.parametrize("placed", ["host", "device"])
@pytest.mark.parametrize("name", RECOGNISED)
def test_cache_changes_no_bit(
    name: str, placed: str, model_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """Prompt, decoding and a small batch, hits and misses, with the CPU and with an accelerator as fast tier."""
    arch, changes = RECOGNISED[name]
    scenario = Scenario(model_of(arch, **changes), sequences=2)
    run = cached if placed == "host" else emulated
    outcome = run(replace(scenario, dense_on_device=placed == "device"))
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("placed", ["host", "device"])
@pytest.mark.parametrize("name", LEFT_WHOLE)
def test_what_is_not_recognised_changes_no_bit(
    name: str, placed: str, model_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """An FFN that cannot be taken apart for certain runs as it stands."""
    arch, changes = LEFT_WHOLE[name]
    scenario = Scenario(model_of(arch, **changes), sequences=2)
    run = cached if placed == "host" else emulated
    assert_same_bits(stock(scenario), run(replace(scenario, dense_on_device=placed == "device")))


def test_cache_changes_no_bit_of_an_encoder(model_of: Callable[..., str], stock: Run, cached: Run) -> None:
    """Embeddings of a model that routes without a gate and without a KV cache."""
    steps = (("batch", 40), ("batch", 5), *((("batch", 1),) * 12))
    scenario = Scenario(model_of("nomic-bert-moe"), steps, sequences=2, n_ubatch=128, encoder=True)
    outcome = cached(scenario)
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("placed", ["host", "device"])
def test_threads_change_no_bit(
    placed: str, model_of: Callable[..., str], stock: Run, cached: Run, emulated: Run
) -> None:
    """Misses computed by two threads are those computed by one."""
    scenario = Scenario(model_of("qwen3moe"), (("prompt", 8), ("decode", 8), ("batch", 3)), n_threads=2)
    scenario = replace(scenario, dense_on_device=placed == "device")
    outcome = (cached if placed == "host" else emulated)(scenario)
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("quant", ["F16", "Q4_0", "Q4_K", "Q6_K", "MXFP4", "IQ4_NL", "NVFP4"])
def test_cache_changes_no_bit_for_any_quantisation(
    quant: str, model_of: Callable[..., str], stock: Run, cached: Run
) -> None:
    """Expert slots hold every block format as it is in the file."""
    scenario = Scenario(model_of("qwen3moe", quant, ff=256))
    outcome = cached(scenario)
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


@pytest.mark.parametrize("policy", ["heat", "lru", "static"])
@pytest.mark.parametrize("slots", [0, 1, 16, 1000])
def test_cache_changes_no_bit_at_any_size(
    slots: int, policy: str, model_of: Callable[..., str], stock: Run, cached: Run
) -> None:
    """Off, one slot, all experts resident, and more slots than experts, under every policy."""
    scenario = Scenario(model_of("qwen3moe"), sequences=3)
    outcome = cached(scenario.with_cache(slots=slots, policy=policy))
    assert outcome.fewest_slots == min(slots, 16)
    assert_same_bits(stock(scenario), outcome)


def test_byte_budget_becomes_slots_of_every_layer(model_of: Callable[..., str], stock: Run, cached: Run) -> None:
    """HOTCACHE_BYTES is shared out evenly and changes no bit either."""
    scenario = Scenario(model_of("qwen3moe"))
    expert_bytes = 3 * 128 * 272
    outcome = cached(scenario.with_cache(slots=0, bytes=4 * 5 * expert_bytes))
    assert outcome.fewest_slots == 5
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


def test_adapters_take_no_share_of_the_budget(
    model_of: Callable[..., str], adapter_of: Callable[..., str], stock: Run, cached: Run
) -> None:
    """Their parts are named after the experts they adapt, but nobody routes to them."""
    model = model_of("qwen3moe")
    steps = (("decode", 12), ("adapt", 1.0), ("decode", 3), ("adapt",), ("decode", 12))
    scenario = Scenario(model, steps, loras=(adapter_of(model, "experts"),))
    outcome = cached(scenario.with_cache(slots=0, bytes=4 * 5 * 3 * 128 * 272))
    assert outcome.fewest_slots == 5
    assert_worked(outcome)
    assert_same_bits(stock(scenario), outcome)


def test_divergence_is_what_it_is_called() -> None:
    """The measure for tiers whose kernels differ, by hand: half a bit of certainty moved between two tokens."""
    import numpy as np

    base, other = np.log(np.array([[0.5, 0.5]])), np.log(np.array([[0.75, 0.25]]))
    assert kl_divergence(base, base) == 0
    assert kl_divergence(base, other) == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
