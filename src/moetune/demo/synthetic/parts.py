"""Building blocks that several architectures share: attention, routed, shared and dense FFNs."""

import math
from dataclasses import dataclass

from moetune.demo.synthetic.plan import ModelPlan
from moetune.demo.synthetic.spec import HEAD_DIM

# Scale of what one sub-layer adds to a stream of scale 1. Routed experts speak louder than the rest, so that a
# wrong expert is visible in the logits.
ATTENTION_GAIN = 0.3
ROUTED_GAIN = 0.7
SHARED_GAIN = 0.3
LOGIT_GAIN = 2.0


@dataclass(frozen=True)
class Attention:
    """Variants of plain attention. ``qk_norm``: none, one norm a head, or one over all heads."""

    qk_norm: str = "none"
    fused_qkv: bool = False
    kv_heads_equal_heads: bool = False
    biases: bool = False
    sinks: bool = False
    # Queries carry a gate of their own size (qwen3next and later).
    gated_query: bool = False
    query_norm: float = 1.0


@dataclass(frozen=True)
class Routed:
    """Variants of the routed FFN. ``loudness`` makes up for router weights that do not sum to one."""

    gated: bool = True
    fused: bool = False
    biases: bool = False
    selection_bias: bool = False
    down_scales: bool = False
    loudness: float = 1.0


def ends(plan: ModelPlan, embedding_scale: float = 1.0) -> None:
    """Embedding, final norm and an output matrix of its own: tied weights would make every token repeat itself."""
    plan.embedding(embedding_scale)
    plan.norm("output_norm")
    plan.matrix("output", plan.spec.vocab, plan.spec.embd, LOGIT_GAIN)


def common_metadata(plan: ModelPlan, attention: Attention) -> None:
    """Keys that every architecture reads."""
    spec = plan.spec
    plan.set(
        context_length=spec.context,
        embedding_length=spec.embd,
        block_count=spec.layers,
        feed_forward_length=spec.dense_ff,
        attention__head_count=spec.heads,
        attention__head_count_kv=spec.heads if attention.kv_heads_equal_heads else spec.kv_heads,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=10_000.0,
        rope__dimension_count=HEAD_DIM,
    )
    if spec.experts:
        plan.set(expert_count=spec.experts, expert_used_count=spec.used, expert_feed_forward_length=spec.ff)


def attention_layer(plan: ModelPlan, layer: int, variant: Attention) -> None:
    """Projections, and what the variant adds to them; the norm before them is the caller's."""
    spec, block = plan.spec, f"blk.{layer}"
    width = spec.heads * HEAD_DIM
    kv_width = width if variant.kv_heads_equal_heads else spec.kv_heads * HEAD_DIM
    if variant.fused_qkv:
        plan.matrix(f"{block}.attn_qkv", width + 2 * kv_width, spec.embd)
    else:
        plan.matrix(f"{block}.attn_q", width * (2 if variant.gated_query else 1), spec.embd)
        plan.matrix(f"{block}.attn_k", kv_width, spec.embd)
        plan.matrix(f"{block}.attn_v", kv_width, spec.embd)
    plan.matrix(f"{block}.attn_output", spec.embd, width, ATTENTION_GAIN)
    if variant.biases:
        for name, size in (("q", width), ("k", kv_width), ("v", kv_width), ("output", spec.embd)):
            plan.constant(f"{block}.attn_{name}.bias", size, 0.0, spread=0.02)
    if variant.qk_norm != "none":
        whole = variant.qk_norm == "all"
        plan.norm(f"{block}.attn_q_norm", width if whole else HEAD_DIM, variant.query_norm)
        plan.norm(f"{block}.attn_k_norm", kv_width if whole else HEAD_DIM)
    if variant.sinks:
        plan.constant(f"{block}.attn_sinks.weight", spec.heads, 0.0, spread=1.0)


def routed_ffn(plan: ModelPlan, layer: int, variant: Routed) -> None:
    """The router and its experts. Widths come from the spec; a latent width replaces the stream's when set."""
    spec, block = plan.spec, f"blk.{layer}"
    width = spec.latent or spec.embd
    # The chosen experts' outputs are independent and weighted by about 1 / used each.
    gain = ROUTED_GAIN * math.sqrt(spec.used) * variant.loudness
    plan.router(layer)
    if variant.fused:
        plan.experts(f"{block}.ffn_gate_up_exps", 2 * spec.ff, width, 1.0, spec.expert_quant(layer))
    else:
        if variant.gated:
            plan.experts(f"{block}.ffn_gate_exps", spec.ff, width, 1.0, spec.expert_quant(layer))
        plan.experts(f"{block}.ffn_up_exps", spec.ff, width, 1.0, spec.expert_quant(layer))
    plan.experts(f"{block}.ffn_down_exps", width, spec.ff, gain, spec.down_quant(layer))
    if variant.biases:
        plan.constant(f"{block}.ffn_gate_inp.bias", spec.experts, 0.0, spread=0.1)
        plan.constant(f"{block}.ffn_gate_exps.bias", (spec.experts, spec.ff), 0.0, spread=0.2)
        # The activation of gpt-oss adds one to the up branch, which would give each expert a constant output.
        plan.constant(f"{block}.ffn_up_exps.bias", (spec.experts, spec.ff), -1.0, spread=0.2)
        plan.constant(f"{block}.ffn_down_exps.bias", (spec.experts, width), 0.0, spread=0.2)
    if variant.selection_bias:
        plan.constant(f"{block}.exp_probs_b.bias", spec.experts, 0.0, spread=0.02)
    _scales(plan, layer, variant)


def _scales(plan: ModelPlan, layer: int, variant: Routed) -> None:
    scaled = {"down"} if variant.down_scales else set()
    if plan.spec.expert_scales:
        scaled |= {"down"} if variant.fused else {"gate", "up", "down"} if variant.gated else {"up", "down"}
    for name in sorted(scaled):
        plan.constant(f"blk.{layer}.ffn_{name}_exps.scale", plan.spec.experts, 1.0, spread=0.2)


def shared_ffn(plan: ModelPlan, layer: int, width: int, gated: bool = True) -> None:
    """Experts that every token passes through."""
    block, embd = f"blk.{layer}", plan.spec.embd
    if gated:
        plan.matrix(f"{block}.ffn_gate_shexp", width, embd)
    plan.matrix(f"{block}.ffn_up_shexp", width, embd)
    plan.matrix(f"{block}.ffn_down_shexp", embd, width, SHARED_GAIN)


def dense_ffn(plan: ModelPlan, layer: int, width: int, gated: bool = True) -> None:
    """An ordinary FFN, as loud as the routed one it stands in for."""
    block, embd = f"blk.{layer}", plan.spec.embd
    if gated:
        plan.matrix(f"{block}.ffn_gate", width, embd)
    plan.matrix(f"{block}.ffn_up", width, embd)
    plan.matrix(f"{block}.ffn_down", embd, width, ROUTED_GAIN)
