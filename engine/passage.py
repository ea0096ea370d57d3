"""What is scored to compare two ways of running a model, and the scores. Imports nothing: every worker needs it."""

from dataclasses import dataclass

# Logits of the base that are held in RAM while the others compute the same chunks.
_MOST_BASE_BYTES = 512 << 20
_LOGIT_BYTES = 4


def most_scored(n_vocab: int) -> int:
    """The most tokens of one chunk that can be scored with a vocabulary of this size."""
    return _MOST_BASE_BYTES // (_LOGIT_BYTES * max(1, n_vocab))


@dataclass(frozen=True)
class Passage:
    """A text to score, cut as `llama-perplexity` cuts it: chunks of `n_chunk` tokens that know nothing of each other,
    each beginning with the model's BOS in place of its first token where the model wants one; a rest is left out.

    n_scored: of each chunk the last so many predictions count; what stands before them is context.
    """

    tokens: tuple[int, ...]
    n_chunk: int
    n_scored: int


@dataclass(frozen=True)
class TokenScores:
    """One entry a scored token. kld: nats; same_top: whether both expect the same token most; nll, base_nll: nats."""

    kld: tuple[float, ...]
    same_top: tuple[bool, ...]
    nll: tuple[float, ...]
    base_nll: tuple[float, ...]
