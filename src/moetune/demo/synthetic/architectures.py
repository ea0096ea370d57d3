"""The architectures that can be synthesised, by the name GGUF gives them."""

from collections.abc import Callable
from dataclasses import dataclass

from moetune.demo.synthetic.plan import ModelPlan
from moetune.demo.synthetic.routing import Routing
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.special import (
    build_deepseek2,
    build_gemma4,
    build_grok,
    build_grovemoe,
    build_nemotron_h_moe,
    build_nomic_bert_moe,
    build_qwen3next,
)
from moetune.demo.synthetic.streams import build_deepseek4, build_kimi_k3
from moetune.demo.synthetic.transformers import TRANSFORMERS, build_maple, build_step35, build_transformer


@dataclass(frozen=True)
class Architecture:
    """How to plan one architecture, and what it can be.

    ``fused``: gate and up in one tensor; ``latent``: experts narrower than the stream; ``encoder``: embeddings, not
    logits; ``routed`` and ``dense``: models with and without experts.
    """

    build: Callable[[ModelPlan], None]
    fused: bool = False
    latent: bool = False
    encoder: bool = False
    routed: bool = True
    dense: bool = False


def _row(name: str) -> Callable[[ModelPlan], None]:
    return lambda plan: build_transformer(plan, TRANSFORMERS[name])


ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture(_row(name)) for name in TRANSFORMERS},
    "llama": Architecture(_row("llama"), dense=True),
    "qwen3": Architecture(_row("qwen3"), dense=True, routed=False),
    "step35": Architecture(build_step35),
    "maple": Architecture(build_maple),
    "cohere2moe": Architecture(_row("cohere2moe"), fused=True),
    "kimi-k3": Architecture(build_kimi_k3, latent=True),
    "deepseek4": Architecture(build_deepseek4),
    "deepseek2": Architecture(build_deepseek2, fused=True),
    "grovemoe": Architecture(build_grovemoe),
    "gemma4": Architecture(build_gemma4, fused=True),
    "grok": Architecture(build_grok),
    "qwen3next": Architecture(build_qwen3next, fused=True),
    "qwen35moe": Architecture(build_qwen3next, fused=True),
    "nemotron_h_moe": Architecture(build_nemotron_h_moe, latent=True),
    "nomic-bert-moe": Architecture(build_nomic_bert_moe, encoder=True),
}


def plan_model(spec: SyntheticSpec) -> ModelPlan:
    """Metadata and tensors of the whole model. Raises ValueError when the architecture cannot be what is asked."""
    architecture = ARCHITECTURES.get(spec.arch)
    if architecture is None:
        raise ValueError(f"arch: {spec.arch!r} is not one of {', '.join(sorted(ARCHITECTURES))}")
    if spec.fused_gate_up and not architecture.fused:
        raise ValueError(f"fused_gate_up: {spec.arch} stores gate and up apart")
    if spec.latent and not architecture.latent:
        raise ValueError(f"latent: {spec.arch} has no latent experts")
    if spec.experts == 0 and not architecture.dense:
        raise ValueError(f"experts: {spec.arch} needs experts; llama and qwen3 can be dense")
    if spec.experts and not architecture.routed:
        raise ValueError(f"experts: {spec.arch} is dense; set experts to 0")
    plan = ModelPlan(spec, Routing.of(spec))
    architecture.build(plan)
    return plan
