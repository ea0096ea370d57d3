"""The demo model that ships: small enough, trained, and what its card says."""

import ast
import hashlib
import inspect
import json
import pydoc_data.topics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from moetune.demo import demo_model_path
from moetune.demo.measure import StockModel, bits_per_byte, top_share

CARD = json.loads(demo_model_path().with_name("card.json").read_text())


@pytest.fixture(scope="module")
def demo() -> Iterator[StockModel]:
    with StockModel(demo_model_path(), context=512) as model:
        yield model


def test_file_is_small_and_matches_its_card() -> None:
    """The card's hash and size are those of the file."""
    data = demo_model_path().read_bytes()
    assert len(data) <= 8 * 1024 * 1024
    assert CARD["bytes"] == len(data)
    assert CARD["sha256"] == hashlib.sha256(data).hexdigest()


def test_module_prints_the_path() -> None:
    """``python -m moetune.demo`` tells where the file lies."""
    done = subprocess.run([sys.executable, "-m", "moetune.demo"], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == demo_model_path()


def test_shape_is_a_real_mixture_of_experts(demo: StockModel) -> None:
    """At least four layers and 32 experts, as qwen3moe."""
    assert demo.metadata("general.architecture") == "qwen3moe"
    assert int(demo.metadata("block_count") or 0) >= 4
    assert int(demo.metadata("expert_count") or 0) >= 32
    parameters = sum(int(np.prod(t.shape)) for t in GGUFReader(demo_model_path()).tensors)
    assert parameters == CARD["parameters"]


@pytest.mark.parametrize("text", ["def f(x):\n    return [x, None]\n", "naïve — 猫 🙂\ttab", "NAME\n       ls - list"])
def test_text_round_trips(demo: StockModel, text: str) -> None:
    """Any text survives tokenisation."""
    assert demo.text(demo.tokenise(text)) == text.encode()


@pytest.mark.parametrize(("workload", "source"), [("code", ast), ("code", textwrap), ("prose", pydoc_data.topics)])
def test_predicts_both_workloads_far_better_than_chance(demo: StockModel, workload: str, source: object) -> None:
    """Text of each workload that lies on any machine costs far less than the 8 bits of random bytes."""
    assert workload in CARD["held_out_bits_per_byte"]["this_file_in_llama_cpp"]
    if source is pydoc_data.topics:
        text = "\n\n".join(pydoc_data.topics.topics[name] for name in ("exceptions", "context-managers", "import"))
    else:
        text = inspect.getsource(source)  # type: ignore[arg-type]
    tokens = demo.tokenise(text)[2000:3100]
    assert len(tokens) > 600
    assert bits_per_byte(demo, tokens) < 3.0


def test_card_reports_held_out_loss_and_agreement() -> None:
    """Both workloads were held out and scored; PyTorch and llama.cpp agreed on the file."""
    for scores in ("before_quantisation_in_pytorch", "this_file_in_llama_cpp"):
        assert set(CARD["held_out_bits_per_byte"][scores]) == {"code", "prose"}
        assert all(0.3 < value < 2.5 for value in CARD["held_out_bits_per_byte"][scores].values())
    assert CARD["agreement_with_pytorch"]["tokenised_alike"]
    assert CARD["agreement_with_pytorch"]["same_best_token"] > 0.95


def test_routing_is_skewed_as_trained_models_are(demo: StockModel) -> None:
    """The busiest 6 of 32 experts take clearly more than their even share in every layer."""
    experts = demo.decode(demo.tokenise(inspect.getsource(ast))[2000:2512]).experts
    assert sorted(experts) == [0, 1, 2, 3]
    for ids in experts.values():
        assert top_share(ids, 6, 32) > 1.25 * 6 / 32


def test_generates_code_after_code(demo: StockModel) -> None:
    """A greedy continuation of a class has methods, not noise."""
    prompt = demo.tokenise("class Reader:\n    def __init__(self, ")
    text = demo.text(demo.generate(prompt, 48)).decode("utf-8", "replace")
    assert text.isascii()
    assert "self." in text
    assert "\n    def " in text
