"""Architectures that are attention plus a routed FFN, told apart by a row of choices."""

from dataclasses import dataclass, field, replace

from moetune.demo.synthetic.parts import (
    Attention,
    Routed,
    attention_layer,
    common_metadata,
    dense_ffn,
    ends,
    routed_ffn,
    shared_ffn,
)
from moetune.demo.synthetic.plan import ModelPlan, Value

# The number that GGUF gives to sigmoid gating.
SIGMOID = 2
_PLAIN = Attention()
_HEAD_NORM = Attention(qk_norm="head")
_EXPERTS = Routed()


@dataclass(frozen=True)
class Transformer:
    """One row. ``shared``: "none", "plain", or "gated" (behind a sigmoid of its own).

    ``expert_width_key`` false: the architecture reads the experts' width from the dense key.
    ``ffn_norm`` names the norm before the FFN, if it has one of its own.
    """

    attention: Attention = _PLAIN
    routed: Routed = _EXPERTS
    shared: str = "none"
    leading_dense: int = 0
    expert_width_key: bool = True
    ffn_norm: str = "ffn_norm"
    metadata: dict[str, Value] = field(default_factory=dict)


_SIGMOID_KEYS: dict[str, Value] = {
    "expert_gating_func": SIGMOID,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "expert_shared_count": 1,
}

TRANSFORMERS: dict[str, Transformer] = {
    "qwen3moe": Transformer(_HEAD_NORM),
    "qwen2moe": Transformer(_PLAIN, Routed(loudness=2.0), shared="gated"),
    "llama": Transformer(expert_width_key=False),
    "qwen3": Transformer(_HEAD_NORM),
    "olmoe": Transformer(
        Attention(qk_norm="all", kv_heads_equal_heads=True), Routed(loudness=2.0), expert_width_key=False
    ),
    "dots1": Transformer(
        Attention(qk_norm="head", kv_heads_equal_heads=True),
        Routed(selection_bias=True),
        shared="plain",
        leading_dense=1,
        metadata=_SIGMOID_KEYS,
    ),
    "bailingmoe2": Transformer(
        Attention(qk_norm="head", fused_qkv=True),
        Routed(selection_bias=True),
        shared="plain",
        leading_dense=1,
        metadata=_SIGMOID_KEYS,
    ),
    "glm4moe": Transformer(
        _HEAD_NORM,
        Routed(selection_bias=True),
        shared="plain",
        leading_dense=1,
        ffn_norm="post_attention_norm",
        metadata=_SIGMOID_KEYS,
    ),
    "minimax-m2": Transformer(
        Attention(qk_norm="all"),
        Routed(selection_bias=True),
        expert_width_key=False,
        metadata={"expert_gating_func": SIGMOID},
    ),
    "hunyuan-moe": Transformer(_HEAD_NORM, shared="plain", expert_width_key=False),
    "llama4": Transformer(shared="plain", metadata={"interleave_moe_layer_step": 1, "attention.sliding_window": 8192}),
    "gpt-oss": Transformer(
        Attention(biases=True, sinks=True),
        Routed(biases=True),
        ffn_norm="post_attention_norm",
        metadata={"attention.sliding_window": 128},
    ),
    "maple": Transformer(
        _HEAD_NORM,
        metadata={"attention.sliding_window": 128},
    ),
    # The router reads the layer's input, before any norm.
    "smallthinker": Transformer(metadata={"expert_gating_func": SIGMOID}),
    # Attention and FFN read the same norm.
    "cohere2moe": Transformer(
        _PLAIN,
        Routed(),
        shared="plain",
        leading_dense=1,
        ffn_norm="",
        metadata={**_SIGMOID_KEYS, "attention.sliding_window": 128, "logit_scale": 1.0},
    ),
    "step35": Transformer(
        _HEAD_NORM,
        Routed(selection_bias=True),
        shared="plain",
        metadata={**_SIGMOID_KEYS, "attention.sliding_window": 512},
    ),
}


def build_transformer(plan: ModelPlan, row: Transformer) -> None:
    """Plans the whole model; without experts, a dense one."""
    spec = plan.spec
    dense = spec.experts == 0
    leading_dense = min(row.leading_dense, spec.layers - 1)
    ends(plan)
    common_metadata(plan, row.attention)
    plan.set(**row.metadata)
    if not row.expert_width_key and not dense:
        plan.set(feed_forward_length=spec.ff)
    if row.leading_dense:
        plan.set(leading_dense_block_count=leading_dense)
    if row.shared != "none":
        plan.set(expert_shared_feed_forward_length=spec.ff)

    for layer in range(spec.layers):
        plan.norm(f"blk.{layer}.attn_norm")
        attention_layer(plan, layer, row.attention)
        if row.ffn_norm:
            plan.norm(f"blk.{layer}.{row.ffn_norm}")
        if dense or layer < leading_dense:
            dense_ffn(plan, layer, spec.dense_ff)
            continue
        routed_ffn(plan, layer, replace(row.routed, fused=spec.fused_gate_up))
        if row.shared != "none":
            shared_ffn(plan, layer, spec.ff)
        if row.shared == "gated":
            plan.constant(f"blk.{layer}.ffn_gate_inp_shexp.weight", spec.embd, 0.0, spread=0.05)


def build_maple(plan: ModelPlan) -> None:
    """Clamped SwiGLU as one operation, sliding windows in every second layer."""
    layers = plan.spec.layers
    build_transformer(plan, TRANSFORMERS["maple"])
    plan.set(
        swiglu_clamp_exp=[0.8] * layers,
        attention__sliding_window_pattern=[layer % 2 == 0 for layer in range(layers)],
    )


def build_step35(plan: ModelPlan) -> None:
    """Clamped SwiGLU in every layer, per-layer arrays for heads and window."""
    row = TRANSFORMERS["step35"]
    layers = plan.spec.layers
    build_transformer(plan, row)
    plan.set(
        swiglu_clamp_exp=[0.8] * layers,
        swiglu_clamp_shexp=[0.8] * layers,
        attention__sliding_window_pattern=[layer % 2 == 0 for layer in range(layers)],
        attention__head_count=[plan.spec.heads] * layers,
        attention__head_count_kv=[plan.spec.kv_heads] * layers,
    )
