"""Architectures whose layers read more than the sum of the layers before: earlier streams, or several at once."""

import numpy as np

from moetune.demo.synthetic.parts import (
    ATTENTION_GAIN,
    Attention,
    Routed,
    common_metadata,
    dense_ffn,
    ends,
    routed_ffn,
    shared_ffn,
)
from moetune.demo.synthetic.plan import Array, ModelPlan, TensorPlan
from moetune.demo.synthetic.spec import HEAD_DIM

_ROPE_PART = 32
_CONVOLUTION = 4
_KV_RANK = 128
# The numbers that GGUF gives to the ways of turning router logits into weights.
_SIGMOID, _SQRT_SOFTPLUS = 2, 4


def build_kimi_k3(plan: ModelPlan) -> None:
    """Three layers of linear attention to one of latent attention, each mixing the streams banked before it.

    Experts work in a width of their own (``latent``), with a bounded activation of eight operations.
    """
    spec = plan.spec
    latent_attention = [layer % 4 == 3 for layer in range(spec.layers)]
    ends(plan)
    common_metadata(plan, Attention())
    plan.set(
        attention__head_count_kv=[int(latent) for latent in latent_attention],
        attention__key_length=_KV_RANK + _ROPE_PART,
        attention__value_length=_KV_RANK,
        attention__key_length_mla=HEAD_DIM + _ROPE_PART,
        attention__value_length_mla=HEAD_DIM,
        attention__q_lora_rank=spec.embd // 2,
        attention__kv_lora_rank=_KV_RANK,
        rope__dimension_count=_ROPE_PART,
        ssm__conv_kernel=_CONVOLUTION,
        kda__head_dim=HEAD_DIM,
        kda__gate_lower_bound=-5.0,
        attn_res__block_size=2,
        activation__situ_beta=4.0,
        activation__situ_linear_beta=4.0,
        leading_dense_block_count=min(1, spec.layers - 1),
        expert_latent_length=spec.latent,
        expert_shared_count=1,
        expert_gating_func=_SIGMOID,
        expert_weights_norm=True,
        expert_weights_scale=1.0,
    )
    plan.constant("output_res_score.weight", spec.embd, 0.0, spread=0.05)
    for layer in range(spec.layers):
        block = f"blk.{layer}"
        for name in ("attn_res_score", "ffn_res_score"):
            plan.constant(f"{block}.{name}.weight", spec.embd, 0.0, spread=0.05)
        plan.norm(f"{block}.attn_norm")
        if latent_attention[layer]:
            _gated_latent_attention(plan, block)
        else:
            _linear_attention(plan, block)
        plan.norm(f"{block}.ffn_norm")
        if layer == 0 and spec.layers > 1:
            dense_ffn(plan, layer, spec.dense_ff)
            continue
        routed_ffn(plan, layer, Routed(selection_bias=True))
        shared_ffn(plan, layer, spec.ff)
        if spec.latent:
            plan.matrix(f"{block}.ffn_routed_down", spec.latent, spec.embd)
            plan.norm(f"{block}.ffn_routed_norm", spec.latent)
            plan.matrix(f"{block}.ffn_routed_up", spec.embd, spec.latent)


def _gated_latent_attention(plan: ModelPlan, block: str) -> None:
    spec = plan.spec
    q_rank = spec.embd // 2
    plan.matrix(f"{block}.attn_q_a", q_rank, spec.embd)
    plan.norm(f"{block}.attn_q_a_norm", q_rank)
    plan.matrix(f"{block}.attn_q_b", spec.heads * (HEAD_DIM + _ROPE_PART), q_rank)
    plan.matrix(f"{block}.attn_kv_a_mqa", _KV_RANK + _ROPE_PART, spec.embd)
    plan.norm(f"{block}.attn_kv_a_norm", _KV_RANK)
    plan.experts(f"{block}.attn_k_b", _KV_RANK, HEAD_DIM, 1.0, spec.quant_dense, count=spec.heads)
    plan.experts(f"{block}.attn_v_b", HEAD_DIM, _KV_RANK, 1.0, spec.quant_dense, count=spec.heads)
    plan.matrix(f"{block}.attn_gate", spec.heads * HEAD_DIM, spec.embd)
    plan.matrix(f"{block}.attn_output", spec.embd, spec.heads * HEAD_DIM, ATTENTION_GAIN)


def _linear_attention(plan: ModelPlan, block: str) -> None:
    spec = plan.spec
    width = spec.heads * HEAD_DIM
    for name in "qkv":
        plan.matrix(f"{block}.attn_{name}", width, spec.embd)
        plan.constant(f"{block}.ssm_conv1d_{name}.weight", (width, 1, _CONVOLUTION), 0.0, spread=0.5)
    plan.matrix(f"{block}.ssm_f_a", HEAD_DIM, spec.embd)
    plan.matrix(f"{block}.ssm_f_b", width, HEAD_DIM)
    plan.matrix(f"{block}.ssm_beta", spec.heads, spec.embd)
    plan.constant(f"{block}.ssm_a", spec.heads, -1.0, spread=0.1)
    plan.constant(f"{block}.ssm_dt.bias", width, 0.0, spread=0.5)
    plan.matrix(f"{block}.ssm_g", width, spec.embd)
    plan.norm(f"{block}.ssm_norm", HEAD_DIM)
    plan.matrix(f"{block}.attn_output", spec.embd, width, ATTENTION_GAIN)


def build_deepseek4(plan: ModelPlan) -> None:
    """Four streams mixed before and after every sub-layer; the first layer's experts are looked up by token."""
    spec = plan.spec
    streams, groups, out_rank = 4, 2, HEAD_DIM
    q_rank = spec.embd // 2
    if spec.layers < 2:
        raise ValueError("layers: deepseek4 compresses keys in two ways and needs a layer for each")
    # Tokens to a compressed key: none in most layers, many in the last but one, few in the last.
    ratios = [0] * (spec.layers - 2) + [128, 4]
    ends(plan)
    common_metadata(plan, Attention())
    plan.set(
        attention__head_count_kv=1,
        attention__q_lora_rank=q_rank,
        attention__sliding_window=128,
        attention__indexer__head_count=1,
        attention__indexer__key_length=HEAD_DIM,
        attention__indexer__top_k=16,
        attention__output_group_count=groups,
        attention__output_lora_rank=out_rank,
        attention__compress_rope_freq_base=10_000.0,
        attention__compress_ratios=ratios,
        rope__dimension_count=_ROPE_PART,
        hyper_connection__count=streams,
        hyper_connection__sinkhorn_iterations=2,
        hyper_connection__epsilon=1e-6,
        hash_layer_count=1,
        swiglu_clamp_exp=[0.8] * spec.layers,
        expert_shared_count=1,
        expert_gating_func=_SQRT_SOFTPLUS,
        expert_weights_norm=True,
        expert_weights_scale=1.0,
    )
    _mixer(plan, "output_hc", streams, streams, scales=1)
    for layer, ratio in enumerate(ratios):
        block = f"blk.{layer}"
        _mixer(plan, f"{block}.hc_attn", streams, (2 + streams) * streams, scales=3)
        plan.norm(f"{block}.attn_norm")
        plan.constant(f"{block}.attn_sinks.weight", spec.heads, 0.0, spread=1.0)
        plan.matrix(f"{block}.attn_q_a", q_rank, spec.embd)
        plan.norm(f"{block}.attn_q_a_norm", q_rank)
        plan.matrix(f"{block}.attn_q_b", spec.heads * HEAD_DIM, q_rank)
        plan.matrix(f"{block}.attn_kv", HEAD_DIM, spec.embd)
        plan.norm(f"{block}.attn_kv_a_norm", HEAD_DIM)
        plan.matrix(f"{block}.attn_output_a", groups * out_rank, spec.heads * HEAD_DIM // groups)
        plan.matrix(f"{block}.attn_output_b", spec.embd, groups * out_rank, ATTENTION_GAIN)
        if ratio == 128:
            _compressor(plan, f"{block}.attn_compressor", ratio, HEAD_DIM)
        elif ratio == 4:
            _compressor(plan, f"{block}.attn_compressor", ratio, 2 * HEAD_DIM)
            _compressor(plan, f"{block}.indexer_compressor", ratio, 2 * HEAD_DIM)
            plan.matrix(f"{block}.indexer.proj", 1, spec.embd)
            plan.matrix(f"{block}.indexer.attn_q_b", HEAD_DIM, q_rank)
        _mixer(plan, f"{block}.hc_ffn", streams, (2 + streams) * streams, scales=3)
        plan.norm(f"{block}.ffn_norm")
        routed_ffn(plan, layer, Routed(selection_bias=layer > 0))
        if layer == 0:
            _experts_by_token(plan, block)
        shared_ffn(plan, layer, spec.ff)


def _mixer(plan: ModelPlan, name: str, streams: int, outputs: int, scales: int) -> None:
    width = streams * plan.spec.embd
    plan.constant(f"{name}_fn.weight", (outputs, width), 0.0, spread=width**-0.5)
    plan.constant(f"{name}_base.weight", outputs, 0.0, spread=0.1)
    plan.constant(f"{name}_scale.weight", scales, 1.0, spread=0.1)


def _compressor(plan: ModelPlan, name: str, ratio: int, width: int) -> None:
    for part in ("kv", "gate"):
        plan.matrix(f"{name}_{part}", width, plan.spec.embd)
    plan.constant(f"{name}_ape.weight", (ratio, width), 0.0, spread=0.1)
    plan.norm(f"{name}_norm", HEAD_DIM)


def _experts_by_token(plan: ModelPlan, block: str) -> None:
    """A table [vocab, used] of distinct experts, a few of them frequent."""
    spec = plan.spec
    shape = (spec.vocab, spec.used)

    def draw(rng: np.random.Generator) -> Array:
        popularity = -spec.skew * np.log1p(rng.permutation(spec.experts))
        scores = popularity + rng.gumbel(size=(spec.vocab, spec.experts))
        return np.argsort(-scores, axis=1)[:, : spec.used].astype(np.int32)

    plan.tensors.append(TensorPlan(f"{block}.ffn_gate_tid2eid.weight", shape, "I32", draw))
