"""Architectures with a layout of their own: latent attention, recurrent layers, extra norms, encoders."""

import math

from moetune.demo.synthetic.parts import (
    ATTENTION_GAIN,
    Attention,
    Routed,
    attention_layer,
    common_metadata,
    dense_ffn,
    ends,
    routed_ffn,
    shared_ffn,
)
from moetune.demo.synthetic.plan import ModelPlan
from moetune.demo.synthetic.spec import HEAD_DIM

_ROPE_PART = 32
_STATE = 64
_CONVOLUTION = 4
# How much a sub-layer may add when the architecture normalises its output to the scale of the stream.
_POST_NORM = 0.5


def build_deepseek2(plan: ModelPlan) -> None:
    """Multi-head latent attention (one compressed KV head), a leading dense layer, shared experts."""
    spec = plan.spec
    kv_rank, q_rank, nope = 128, spec.embd // 2, HEAD_DIM
    ends(plan)
    common_metadata(plan, Attention())
    dense_layers = min(1, spec.layers - 1)
    plan.set(
        attention__head_count_kv=1,
        attention__key_length=kv_rank + _ROPE_PART,
        attention__value_length=kv_rank,
        attention__key_length_mla=nope + _ROPE_PART,
        attention__value_length_mla=HEAD_DIM,
        attention__q_lora_rank=q_rank,
        attention__kv_lora_rank=kv_rank,
        rope__dimension_count=_ROPE_PART,
        leading_dense_block_count=dense_layers,
        expert_shared_count=1,
        expert_gating_func=2,
        expert_weights_norm=True,
        expert_weights_scale=1.0,
    )
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        plan.matrix(f"{block}.attn_q_a", q_rank, spec.embd)
        plan.norm(f"{block}.attn_q_a_norm", q_rank)
        plan.matrix(f"{block}.attn_q_b", spec.heads * (nope + _ROPE_PART), q_rank)
        plan.matrix(f"{block}.attn_kv_a_mqa", kv_rank + _ROPE_PART, spec.embd)
        plan.norm(f"{block}.attn_kv_a_norm", kv_rank)
        plan.experts(f"{block}.attn_k_b", kv_rank, nope, 1.0, spec.quant_dense, count=spec.heads)
        plan.experts(f"{block}.attn_v_b", HEAD_DIM, kv_rank, 1.0, spec.quant_dense, count=spec.heads)
        plan.matrix(f"{block}.attn_output", spec.embd, spec.heads * HEAD_DIM, ATTENTION_GAIN)
        plan.norm(f"{block}.ffn_norm")
        if layer < dense_layers:
            dense_ffn(plan, layer, spec.dense_ff)
        else:
            routed_ffn(plan, layer, Routed(fused=spec.fused_gate_up, selection_bias=True))
            shared_ffn(plan, layer, spec.ff)


def build_grovemoe(plan: ModelPlan) -> None:
    """Two routed FFNs a layer: experts, then smaller ones shared by each pair of experts."""
    spec = plan.spec
    variant = Attention(qk_norm="head")
    group, chunk_ff = 2, HEAD_DIM
    if spec.experts % group or spec.used > spec.experts // group:
        raise ValueError(f"experts: grovemoe needs a multiple of {group}, and at most half of them used")
    ends(plan)
    common_metadata(plan, variant)
    plan.set(expert_chunk_feed_forward_length=chunk_ff, expert_group_scale=0.5, experts_per_group=group)
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        attention_layer(plan, layer, variant)
        plan.norm(f"{block}.ffn_norm")
        routed_ffn(plan, layer, Routed())
        count = spec.experts // group
        for name, rows, columns in (
            ("gate", chunk_ff, spec.embd),
            ("up", chunk_ff, spec.embd),
            ("down", spec.embd, chunk_ff),
        ):
            plan.experts(f"{block}.ffn_{name}_chexps", rows, columns, 1.0, spec.quant_dense, count=count)


def build_gemma4(plan: ModelPlan) -> None:
    """GEGLU experts beside a dense FFN, a router outside the FFN's norm, sliding windows, a norm after everything."""
    spec = plan.spec
    # The arithmetic does not scale scores down, so the query norm does.
    variant = Attention(qk_norm="head", query_norm=1 / math.sqrt(HEAD_DIM))
    # llama.cpp multiplies embeddings by the root of the width.
    ends(plan, embedding_scale=1 / math.sqrt(spec.embd))
    common_metadata(plan, variant)
    plan.set(
        attention__sliding_window=512,
        attention__sliding_window_pattern=[layer % 2 == 0 and layer + 1 < spec.layers for layer in range(spec.layers)],
        attention__key_length_swa=HEAD_DIM,
        attention__value_length_swa=HEAD_DIM,
        attention__shared_kv_layers=0,
        rope__freq_base_swa=10_000.0,
        rope__dimension_count_swa=HEAD_DIM,
        embedding_length_per_layer_input=0,
        final_logit_softcapping=30.0,
    )
    plan.constant("rope_freqs.weight", HEAD_DIM // 2, 1.0)
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        attention_layer(plan, layer, variant)
        plan.norm(f"{block}.post_attention_norm", value=_POST_NORM)
        plan.norm(f"{block}.ffn_norm")
        dense_ffn(plan, layer, spec.dense_ff)
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1"):
            plan.norm(f"{block}.{name}")
        # The routed part is twice as loud as the dense one.
        plan.norm(f"{block}.post_ffw_norm_2", value=2.0)
        plan.norm(f"{block}.post_ffw_norm", value=_POST_NORM)
        plan.constant(f"{block}.layer_output_scale.weight", 1, 1.0)
        # The router's input is divided by the root of the width.
        plan.constant(f"{block}.ffn_gate_inp.scale", spec.embd, math.sqrt(spec.embd))
        routed_ffn(plan, layer, Routed(fused=spec.fused_gate_up, down_scales=True))


def build_grok(plan: ModelPlan) -> None:
    """GEGLU experts, each sub-layer's output normalised."""
    spec = plan.spec
    ends(plan)
    common_metadata(plan, Attention())
    plan.set(embedding_scale=1.0, logit_scale=1.0, attention__output_scale=1 / math.sqrt(HEAD_DIM))
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        attention_layer(plan, layer, Attention())
        plan.norm(f"{block}.attn_output_norm", value=_POST_NORM)
        plan.norm(f"{block}.ffn_norm")
        routed_ffn(plan, layer, Routed())
        plan.norm(f"{block}.layer_output_norm", value=_POST_NORM)


def build_qwen3next(plan: ModelPlan) -> None:
    """Three layers of gated delta net to one of gated attention; shared expert behind a gate."""
    spec = plan.spec
    newer = spec.arch == "qwen35moe"
    variant = Attention(qk_norm="head", gated_query=True)
    key_heads, value_heads = 2, 4
    ends(plan)
    common_metadata(plan, variant)
    _recurrent_metadata(plan, inner=value_heads * _STATE, heads=value_heads, groups=key_heads)
    plan.set(expert_shared_feed_forward_length=spec.ff, full_attention_interval=4)
    if newer:
        plan.set(rope__dimension_sections=[11, 11, 10, 0])
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        if (layer + 1) % 4 == 0:
            attention_layer(plan, layer, variant)
        else:
            _delta_net(plan, block, key_heads, value_heads, split_beta=newer)
        plan.norm(f"{block}.post_attention_norm")
        routed_ffn(plan, layer, Routed(fused=spec.fused_gate_up))
        shared_ffn(plan, layer, spec.ff)
        plan.constant(f"{block}.ffn_gate_inp_shexp.weight", spec.embd, 0.0, spread=0.05)


def _delta_net(plan: ModelPlan, block: str, key_heads: int, value_heads: int, split_beta: bool) -> None:
    embd = plan.spec.embd
    inner = value_heads * _STATE
    channels = 2 * key_heads * _STATE + inner
    plan.matrix(f"{block}.attn_qkv", channels, embd)
    plan.matrix(f"{block}.attn_gate", inner, embd)
    plan.constant(f"{block}.ssm_conv1d.weight", (channels, _CONVOLUTION), 0.0, spread=0.5)
    plan.constant(f"{block}.ssm_dt.bias", value_heads, 0.0, spread=0.5)
    plan.constant(f"{block}.ssm_a", value_heads, -0.5, spread=0.1)
    if split_beta:
        plan.matrix(f"{block}.ssm_beta", value_heads, embd)
        plan.matrix(f"{block}.ssm_alpha", value_heads, embd)
    else:
        plan.matrix(f"{block}.ssm_ba", 2 * value_heads, embd)
    plan.norm(f"{block}.ssm_norm", _STATE)
    plan.matrix(f"{block}.ssm_out", embd, inner, ATTENTION_GAIN)


def build_nemotron_h_moe(plan: ModelPlan) -> None:
    """One mixer a layer, in turn: Mamba-2, experts, attention, experts. No gate: squared ReLU."""
    spec = plan.spec
    kinds = [("mamba", "experts", "attention", "experts")[layer % 4] for layer in range(spec.layers)]
    if "experts" not in kinds:
        raise ValueError("layers: nemotron_h_moe has its first experts in the second layer")
    inner, heads, groups = 4 * _STATE, 4, 2
    ends(plan)
    common_metadata(plan, Attention())
    _recurrent_metadata(plan, inner, heads, groups)
    plan.set(
        attention__layer_norm_epsilon=1e-6,
        attention__head_count_kv=[spec.kv_heads if kind == "attention" else 0 for kind in kinds],
        feed_forward_length=[spec.ff if kind == "experts" else 0 for kind in kinds],
        expert_shared_feed_forward_length=spec.ff,
        expert_shared_count=1,
        expert_weights_norm=True,
        expert_weights_scale=1.0,
    )
    if spec.latent:
        plan.set(moe_latent_size=spec.latent)
    for layer, kind in enumerate(kinds):
        block = f"blk.{layer}"
        plan.norm(f"{block}.attn_norm")
        if kind == "attention":
            attention_layer(plan, layer, Attention())
        elif kind == "mamba":
            _mamba2(plan, block, inner, heads, groups)
        else:
            routed_ffn(plan, layer, Routed(gated=False, selection_bias=True, loudness=0.6))
            shared_ffn(plan, layer, spec.ff, gated=False)
            if spec.latent:
                plan.matrix(f"{block}.ffn_latent_down", spec.latent, spec.embd)
                plan.matrix(f"{block}.ffn_latent_up", spec.embd, spec.latent)


def _mamba2(plan: ModelPlan, block: str, inner: int, heads: int, groups: int) -> None:
    embd = plan.spec.embd
    channels = inner + 2 * groups * _STATE
    plan.matrix(f"{block}.ssm_in", inner + channels + heads, embd)
    plan.constant(f"{block}.ssm_conv1d.weight", (channels, _CONVOLUTION), 0.0, spread=0.5)
    plan.constant(f"{block}.ssm_conv1d.bias", channels, 0.0, spread=0.05)
    plan.constant(f"{block}.ssm_dt.bias", heads, -1.0, spread=0.5)
    plan.constant(f"{block}.ssm_a", (heads, 1), -1.0, spread=0.2)
    plan.constant(f"{block}.ssm_d", (heads, 1), 1.0, spread=0.1)
    plan.norm_rows(f"{block}.ssm_norm", groups, inner // groups)
    plan.matrix(f"{block}.ssm_out", embd, inner, ATTENTION_GAIN)


def _recurrent_metadata(plan: ModelPlan, inner: int, heads: int, groups: int) -> None:
    plan.set(
        ssm__conv_kernel=_CONVOLUTION,
        ssm__inner_size=inner,
        ssm__state_size=_STATE,
        ssm__time_step_rank=heads,
        ssm__group_count=groups,
    )


def build_nomic_bert_moe(plan: ModelPlan) -> None:
    """An encoder: every second layer routes, experts are GELU without a gate; it yields embeddings, not logits."""
    spec = plan.spec
    if spec.layers < 2:
        raise ValueError("layers: nomic-bert-moe has its first experts in the second layer")
    plan.embedding()
    common_metadata(plan, Attention())
    plan.set(
        attention__layer_norm_epsilon=1e-6,
        attention__causal=False,
        pooling_type=0,
        moe_every_n_layers=2,
        feed_forward_length=spec.ff,
    )
    plan.constant("token_types.weight", (1, spec.embd), 0.0, spread=0.02)
    _layer_norm(plan, "token_embd_norm")
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        attention_layer(plan, layer, Attention(biases=True))
        _layer_norm(plan, f"{block}.attn_output_norm")
        if layer % 2 == 1:
            routed_ffn(plan, layer, Routed(gated=False, loudness=2.0))
        else:
            dense_ffn(plan, layer, spec.ff, gated=False)
            plan.constant(f"{block}.ffn_up.bias", spec.ff, 0.0, spread=0.02)
            plan.constant(f"{block}.ffn_down.bias", spec.embd, 0.0, spread=0.02)
        _layer_norm(plan, f"{block}.layer_output_norm")


def _layer_norm(plan: ModelPlan, name: str) -> None:
    plan.norm(name)
    plan.constant(f"{name}.bias", plan.spec.embd, 0.0, spread=0.02)
