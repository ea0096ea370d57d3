"""The figures of a comparison, against SciPy's own definitions and llama-perplexity's formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy, sem

from moetune.engine.divergence import join, score_tokens, summarize
from moetune.engine.passage import TokenScores

RANDOM = np.random.default_rng(7)
BASE = RANDOM.normal(0, 4, (100, 50)).astype(np.float32)
OTHER = (BASE + RANDOM.normal(0, 0.3, BASE.shape)).astype(np.float32)
CAME = RANDOM.integers(0, 50, 100)


def test_kld_is_the_relative_entropy_of_every_row() -> None:
    """The base comes first, as it is what the text is thought to be drawn from."""
    scores = score_tokens(BASE, OTHER, CAME)
    p, q = softmax(BASE.astype(float), axis=1), softmax(OTHER.astype(float), axis=1)
    assert scores.kld == pytest.approx(entropy(p, q, axis=1), rel=1e-9)
    assert min(scores.kld) > 0
    assert scores.nll == pytest.approx(-np.log(q[np.arange(100), CAME]), rel=1e-9)
    assert scores.base_nll == pytest.approx(-np.log(p[np.arange(100), CAME]), rel=1e-9)
    assert scores.same_top == tuple((BASE.argmax(1) == OTHER.argmax(1)).tolist())
    assert 0 < sum(scores.same_top) < 100


def test_equal_logits_have_no_divergence() -> None:
    """Also where they are shifted, which changes no probability."""
    scores = score_tokens(BASE, BASE + np.float32(2), CAME)
    assert max(map(abs, scores.kld)) < 1e-9
    assert all(scores.same_top)


def test_improbable_tokens_do_not_overflow() -> None:
    """A token the other thinks impossible costs its logit's distance, not infinity."""
    base, other = np.zeros((1, 2), np.float32), np.array([[0.0, -1000.0]], np.float32)
    assert score_tokens(base, other, np.array([0])).kld == pytest.approx((500 - math.log(2),))


def test_the_summary_is_llama_perplexitys() -> None:
    """Mean with standard error, linear quantiles, the binomial error of the share, and both perplexities."""
    scores = score_tokens(BASE, OTHER, CAME)
    found = summarize(scores)
    kld = np.array(scores.kld)
    assert (found.n_tokens, found.mean, found.most) == (100, pytest.approx(kld.mean()), kld.max())
    assert found.mean_error == pytest.approx(sem(kld))
    assert found.mean_error == pytest.approx(math.sqrt((np.mean(kld**2) - kld.mean() ** 2) / 99))
    assert found.median == pytest.approx(np.median(kld))
    assert (found.p99, found.p999) == pytest.approx(tuple(np.quantile(kld, (0.99, 0.999))))
    assert found.n_same_top == sum(scores.same_top)
    assert found.top1_error == pytest.approx(math.sqrt(found.top1 * (1 - found.top1) / 99))
    assert (found.ppl, found.base_ppl) == pytest.approx((np.exp(np.mean(scores.nll)), np.exp(np.mean(scores.base_nll))))


def test_stretches_join_in_order() -> None:
    """Two halves make the whole."""
    halves = [score_tokens(BASE[rows], OTHER[rows], CAME[rows]) for rows in (slice(0, 41), slice(41, None))]
    whole = score_tokens(BASE, OTHER, CAME)
    assert join(halves).kld == pytest.approx(whole.kld)
    assert replace(join(halves), kld=(), nll=(), base_nll=()) == TokenScores((), whole.same_top, (), ())
