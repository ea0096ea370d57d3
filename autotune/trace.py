"""The fixed tokens every configuration is measured on, made from a workload's texts."""

from dataclasses import dataclass

from moetune.engine.measurement import Runner, Trace
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import Workload

# Below these a measurement says nothing about a request.
SMALLEST_PROMPT = 8
SMALLEST_REPLY = 8
# Hit rate and speed are flat well before, or do not become so.
MOST_WARMUP = 256


@dataclass(frozen=True)
class RequestShape:
    """Token counts of the request that is measured: the workload's, or scaled down to fit the context."""

    depth_tokens: int
    prompt_tokens: int
    reply_tokens: int
    scaled: bool


def shape_for(workload: Workload, n_ctx: int) -> RequestShape:
    """The workload's lengths, all three scaled alike when the context cannot hold them."""
    needed = workload.n_ctx_needed
    if needed <= n_ctx:
        return RequestShape(workload.depth_tokens, workload.prompt_tokens, workload.reply_tokens, scaled=False)
    scale = n_ctx / needed
    prompt = max(min(SMALLEST_PROMPT, workload.prompt_tokens), int(workload.prompt_tokens * scale))
    reply = max(min(SMALLEST_REPLY, workload.reply_tokens), int(workload.reply_tokens * scale))
    depth = min(int(workload.depth_tokens * scale), n_ctx - prompt - reply)
    if depth < 0:
        raise MoetuneError(
            f"A context of {n_ctx:,} tokens is too small for the workload {workload.name!r}, "
            f"which takes {needed:,} and at the very least {prompt + reply}.",
            f"Use a larger --ctx, {needed:,} for the whole workload.",
            ExitCode.USAGE,
        )
    return RequestShape(depth, prompt, reply, scaled=True)


def build_trace(workload: Workload, shape: RequestShape, n_ctx: int, runner: Runner) -> Trace:
    """Depth, prompt, reply and warm-up as consecutive stretches of the workload's texts, repeated where they are short.

    The warm-up has the room that the context leaves behind the prompt; it stands where the reply does later.
    """
    tokens = tuple(token for text in workload.texts for token in runner.tokenize(text))
    if not tokens:
        raise MoetuneError(
            f"The texts of the workload {workload.name!r} give no tokens in this model's vocabulary.",
            "Use another workload, or check that the model has a tokenizer.",
            ExitCode.MODEL,
        )
    warmup = min(MOST_WARMUP, n_ctx - shape.depth_tokens - shape.prompt_tokens)
    needed = shape.depth_tokens + shape.prompt_tokens + shape.reply_tokens + warmup
    stretch = (tokens * -(-needed // len(tokens)))[:needed]
    prompt_at, reply_at = shape.depth_tokens, shape.depth_tokens + shape.prompt_tokens
    return Trace(
        name=workload.name,
        depth_tokens=stretch[:prompt_at],
        prompt_tokens=stretch[prompt_at:reply_at],
        reply_tokens=stretch[reply_at : needed - warmup],
        warmup_tokens=stretch[needed - warmup :],
    )
