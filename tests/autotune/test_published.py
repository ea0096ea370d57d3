"""Predictions beside what others published; docs/plan.md shows the same table."""

from pathlib import Path
from statistics import median

import pytest
from published_rows import held, implied_cached_s, model_of, models, rows, table

from moetune.hardware import assumptions

DOCUMENT = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
TOTAL_WEIGHTS = {"qwen3.5-122b-a10b": 122, "qwen3.5-397b-a17b": 397, "qwen3.6-35b-a3b": 35, "qwen3.8-flash-next": 125}


@pytest.mark.parametrize("name", TOTAL_WEIGHTS)
def test_the_shapes_add_up_to_the_models_names(name: str) -> None:
    """Within 2 %: what is missing are norms and vision."""
    shape = models()[name]
    model = model_of(name, shape, 4.5, 8.0)
    weights = sum(layer.dense_weights + model.n_expert * layer.expert_weights for layer in model.layers)
    weights += 2 * shape["vocab"] * shape["embd"]
    assert weights / 1e9 == pytest.approx(TOTAL_WEIGHTS[name], rel=0.02)


def test_the_document_shows_every_row_and_its_error() -> None:
    """Computed from the rows and the model as they are now."""
    assert table() in DOCUMENT


def test_every_row_says_what_was_assumed_and_the_document_repeats_it() -> None:
    """What a source does not say is nobody's secret."""
    for row in rows():
        assert row["stated"]
        assert row["assumed"]
    assert "whole machine" in DOCUMENT


def test_rows_with_a_known_machine_are_predicted_within_an_eighth() -> None:
    """Stock and cached alike; the 397B rows do not say what they were measured on."""
    errors = [abs(row.error) for row in held() if not row.name.startswith("397B")]
    assert len(errors) == 7
    assert max(errors) < 0.125
    assert median(errors) < 0.09


def test_the_cache_that_lost_is_predicted_to_lose() -> None:
    """397B: neither figure is near, for want of the machine; that the cache does not pay is."""
    without, cached = (row for row in held() if row.name.startswith("397B"))
    assert cached.predicted < without.predicted


def test_the_cost_of_a_cached_layer_is_what_the_stated_break_even_implies() -> None:
    """The one constant that caches are predicted with, from the one figure published for it."""
    assert implied_cached_s() * 1e6 == pytest.approx(assumptions.CACHED_LAYER_US.value, rel=0.02)
