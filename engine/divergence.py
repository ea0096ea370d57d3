"""How far one way of running a model moves its next-token distributions from another way's, on the same text."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from moetune.engine.passage import TokenScores

# Rows taken to double precision at a time: a row of a large vocabulary is a megabyte.
_ROWS = 32


@dataclass(frozen=True)
class Divergence:
    """A summary of `TokenScores`, as `llama-perplexity --kl-divergence` defines each figure.

    mean, median, p99, p999 (99 % and 99.9 % of tokens lie below), most: KLD in nats. top1: share of tokens on whose
    likeliest successor both agree. mean_error, top1_error: one standard error, tokens taken as independent.
    ppl, base_ppl: perplexities.
    """

    n_tokens: int
    mean: float
    mean_error: float
    median: float
    p99: float
    p999: float
    most: float
    top1: float
    top1_error: float
    ppl: float
    base_ppl: float

    @property
    def n_same_top(self) -> int:
        """Tokens on whose likeliest successor both agree."""
        return round(self.top1 * self.n_tokens)


def score_tokens(base: NDArray[np.float32], other: NDArray[np.float32], following: NDArray[Any]) -> TokenScores:
    """KLD(base ‖ other) = Σ p_base (log p_base − log p_other) of every row.

    base, other: logits [n, n_vocab]. following: the n tokens that really came next.
    """
    klds, tops, nlls, base_nlls = [], [], [], []
    for start in range(0, len(following), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = log_softmax(base[rows].astype(np.float64), axis=1)
        log_q = log_softmax(other[rows].astype(np.float64), axis=1)
        klds.append(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
        tops.append(np.argmax(base[rows], axis=1) == np.argmax(other[rows], axis=1))
        came = np.expand_dims(following[rows], 1)
        nlls.append(-np.take_along_axis(log_q, came, axis=1)[:, 0])
        base_nlls.append(-np.take_along_axis(log_p, came, axis=1)[:, 0])
    return TokenScores(*(tuple(np.concatenate(parts).tolist()) for parts in (klds, tops, nlls, base_nlls)))


def join(parts: list[TokenScores]) -> TokenScores:
    """The scores of several stretches as one."""
    return TokenScores(
        kld=tuple(value for part in parts for value in part.kld),
        same_top=tuple(value for part in parts for value in part.same_top),
        nll=tuple(value for part in parts for value in part.nll),
        base_nll=tuple(value for part in parts for value in part.base_nll),
    )


def summarize(scores: TokenScores) -> Divergence:
    """Needs two tokens or more."""
    kld = np.array(scores.kld)
    n = len(kld)
    top1 = float(np.mean(scores.same_top))
    median, p99, p999 = np.quantile(kld, (0.5, 0.99, 0.999))
    return Divergence(
        n_tokens=n,
        mean=float(kld.mean()),
        mean_error=float(kld.std(ddof=1)) / math.sqrt(n),
        median=float(median),
        p99=float(p99),
        p999=float(p999),
        most=float(kld.max()),
        top1=top1,
        top1_error=math.sqrt(top1 * (1 - top1) / (n - 1)),
        ppl=math.exp(float(np.mean(scores.nll))),
        base_ppl=math.exp(float(np.mean(scores.base_nll))),
    )
