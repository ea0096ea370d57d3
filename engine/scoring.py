"""Scores ways of running the loaded model against a base, in the worker: one context at a time, nothing on disk."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from moetune.engine.config import EngineConfig
from moetune.engine.divergence import join, score_tokens
from moetune.engine.measurement import FailureReason
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.passage import Passage, TokenScores, most_scored


def compare(
    model: ModelHandle,
    apply: Callable[[EngineConfig], object],
    base: EngineConfig,
    others: Sequence[EngineConfig],
    passage: Passage,
) -> tuple[TokenScores, ...]:
    """Scores of each of `others`. `apply` opens the context of a configuration on `model`. Raises EngineFailure."""
    chunks = _chunks(model.first_tokens, passage)
    if not 0 < passage.n_scored < passage.n_chunk <= min(config.n_ctx for config in (base, *others)) or not chunks:
        raise EngineFailure(FailureReason.REFUSED, f"{len(passage.tokens)} tokens cannot be scored as was asked for")
    if passage.n_scored > most_scored(model.n_vocab):
        raise EngineFailure(FailureReason.REFUSED, f"{passage.n_scored} tokens of a chunk are too many to score")
    at_once = max(1, most_scored(model.n_vocab) // passage.n_scored)
    parts: list[list[TokenScores]] = [[] for _ in others]
    for start in range(0, len(chunks), at_once):
        group = chunks[start : start + at_once]
        apply(base)
        expected = [_logits(model, chunk, passage.n_scored) for chunk in group]
        for other, scores in zip(others, parts, strict=True):
            apply(other)
            for chunk, wanted in zip(group, expected, strict=True):
                following = np.array(chunk[-passage.n_scored :])
                scores.append(score_tokens(wanted, _logits(model, chunk, passage.n_scored), following))
    return tuple(join(scores) for scores in parts)


def _chunks(first_tokens: list[int], passage: Passage) -> list[list[int]]:
    text = [*first_tokens, *passage.tokens]
    n = passage.n_chunk
    return [[*first_tokens, *text[at + len(first_tokens) : at + n]] for at in range(0, len(text) - n + 1, n)]


def _logits(model: ModelHandle, chunk: list[int], n_scored: int) -> NDArray[np.float32]:
    """Predictions of the last `n_scored` tokens. What would follow the chunk is computed, as stock does, and unused."""
    model.clear()
    logits = model.decode_logits(chunk, n_scored + 1)[:-1]
    if not np.isfinite(logits).all():
        raise EngineFailure(FailureReason.DECODE_FAILED, "the model's output is not a number")
    return logits
