"""Scoring KV types on a real model in a real worker: what is compared with what, and what it leaves alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine import passage as passages
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.measurement import Failed, FailureReason
from moetune.engine.model_handle import EngineFailure
from moetune.engine.passage import Passage, TokenScores
from moetune.engine.runner import EngineRunner
from moetune.engine.scoring import compare

BASE = EngineConfig(n_ctx=256, n_threads=1, n_ubatch=64)
Q4 = replace(BASE, type_k=KvType.Q4_0, type_v=KvType.Q4_0)
Q8 = replace(BASE, type_k=KvType.Q8_0, type_v=KvType.Q8_0)
TOKENS = tuple(int(t) for t in np.random.default_rng(3).integers(5, 200, 3 * 64))
TEXT = Passage(TOKENS, n_chunk=64, n_scored=31)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight MoE model."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_synthetic(path, SyntheticSpec(arch="qwen3moe", layers=4, experts=16, used=4, embd=256, ff=128, quant="Q4_0"))
    return path


@pytest.fixture
def runner(model: Path) -> Iterator[EngineRunner]:
    """A runner whose process ends with the test."""
    with EngineRunner(model) as running:
        yield running


def scored(runner: EngineRunner, *others: EngineConfig, base: EngineConfig = BASE) -> tuple[TokenScores, ...]:
    """Scores, or the test fails with the engine's words."""
    scores = runner.score(base, others, TEXT, time_limit_s=60)
    assert not isinstance(scores, Failed), scores
    return scores


def test_fewer_bits_diverge_more(runner: EngineRunner) -> None:
    """The base itself does not diverge at all; every scored token of every chunk is there."""
    same, eight, four = scored(runner, BASE, Q8, Q4)
    assert len(four.kld) == 3 * 31
    assert (max(same.kld), all(same.same_top)) == (0.0, True)
    assert 0 < sum(eight.kld) < sum(four.kld)
    assert same.base_nll == same.nll == four.base_nll


def test_the_model_is_loaded_once_for_all_types(runner: EngineRunner) -> None:
    """Also for the trials around it: the process is the one that measures."""
    scored(runner, Q8)
    pid = runner.pid
    scored(runner, Q4)
    assert runner.pid == pid


def test_the_plugin_changes_no_score(runner: EngineRunner) -> None:
    """With the cache loaded and off the figures are those of stock llama.cpp in the same layout."""
    plugin = {"device": "CPU", "repack": False, "cache": CacheKnobs(slots=0)}
    stock = scored(runner, replace(Q4, repack=False), base=replace(BASE, repack=False))
    assert scored(runner, replace(Q4, **plugin), base=replace(BASE, **plugin)) == stock  # type: ignore[arg-type]


def test_chunks_know_nothing_of_each_other(runner: EngineRunner) -> None:
    """The middle chunk alone scores as it does between the others."""
    [every] = scored(runner, Q4)
    alone = runner.score(BASE, (Q4,), replace(TEXT, tokens=TOKENS[64:128]), time_limit_s=60)
    assert not isinstance(alone, Failed)
    assert alone[0].kld == every.kld[31:62]


@pytest.mark.parametrize("passage", [Passage((5,) * 63, 64, 31), Passage(TOKENS, 64, 64), Passage(TOKENS, 512, 31)])
def test_what_cannot_be_scored_is_refused(runner: EngineRunner, passage: Passage) -> None:
    """No whole chunk; nothing before the scored tokens; a chunk longer than the context. The worker stays usable."""
    result = runner.score(BASE, (Q4,), passage, time_limit_s=60)
    assert isinstance(result, Failed)
    assert result.reason is FailureReason.REFUSED
    scored(runner, Q8)


class FakeModel:
    """Logits that tell the context they were computed in and the tokens; counts the contexts that were opened."""

    def __init__(self, n_vocab: int, first_tokens: list[int], logit: float = 1.0) -> None:
        self.n_vocab, self.first_tokens, self.logit = n_vocab, first_tokens, logit
        self.opened: list[EngineConfig] = []
        self.decoded: list[list[int]] = []

    def apply(self, config: EngineConfig) -> None:
        self.opened.append(config)

    def clear(self) -> None:
        pass

    def decode_logits(self, tokens: list[int], n_last: int) -> NDArray[np.float32]:
        self.decoded.append(tokens)
        return np.full((n_last, self.n_vocab), self.logit, np.float32)


def test_every_chunk_begins_with_bos_where_the_model_wants_it() -> None:
    """As in llama-perplexity: before the text, and in place of the first token of every later chunk."""
    model = FakeModel(4, [1])
    passage = Passage(tuple(range(10, 21)), n_chunk=4, n_scored=1)
    compare(model, model.apply, BASE, [Q4], replace(passage, tokens=(0,) * 3))  # type: ignore[arg-type]
    assert model.decoded == [[1, 0, 0, 0]] * 2
    model.decoded.clear()
    following = Passage(tuple(i % 4 for i in range(11)), n_chunk=4, n_scored=1)
    compare(model, model.apply, BASE, [], following)  # type: ignore[arg-type]
    assert model.decoded == [[1, 0, 1, 2], [1, 0, 1, 2], [1, 0, 1, 2]]


def test_a_large_vocabulary_is_scored_a_few_chunks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of the base's logits are held than were planned for."""
    monkeypatch.setattr(passages, "_MOST_BASE_BYTES", 2 * 31 * 4 * 200)
    model = FakeModel(200, [])
    compare(model, model.apply, BASE, [Q4], TEXT)  # type: ignore[arg-type]
    assert model.opened == [BASE, Q4, BASE, Q4]
    assert [len(model.decoded), model.decoded[0], model.decoded[4]] == [6, list(TOKENS[:64]), list(TOKENS[128:])]


def test_output_that_is_not_a_number_is_a_failure() -> None:
    """Damaged weights must not pass as a perfect score."""
    model = FakeModel(200, [], logit=float("nan"))
    with pytest.raises(EngineFailure, match="not a number"):
        compare(model, model.apply, BASE, [Q4], TEXT)  # type: ignore[arg-type]
