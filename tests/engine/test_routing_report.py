"""What a person or a program gets to see of a recorded pass."""

import json
from pathlib import Path

import numpy as np
import pytest
from routing_samples import random_routing

from moetune.engine.library import plugin_path
from moetune.engine.routing import RoutedLayer, Routing
from moetune.engine.routing_figure import write_figure
from moetune.engine.routing_replay import POLICIES
from moetune.engine.routing_report import RoutingReport, n_steps, report_on, slot_counts
from moetune.engine.routing_tables import WIDTH, report_tables
from moetune.errors import ExitCode, MoetuneError

pytestmark = pytest.mark.skipif(not plugin_path().is_file(), reason="the plugin is not built")

LAYERS = (RoutedLayer(1, 16, 2), RoutedLayer(2, 8, 2), RoutedLayer(39, 300, 4))


def report(routing: Routing) -> RoutingReport:
    return report_on(routing, slot_counts(routing), (), lambda: None)


@pytest.fixture(scope="module")
def two() -> RoutingReport:
    """Two workloads, layers of different sizes, one name that fits nowhere."""
    return report(random_routing(LAYERS, {"code": 60, "a name " * 20: 40}))


def test_tables_fit_a_terminal_whatever_the_names_are(two: RoutingReport) -> None:
    """No line is wider than 80 columns."""
    assert max(map(len, report_tables(two).splitlines())) <= WIDTH


def test_tables_say_what_was_counted(two: RoutingReport) -> None:
    """Every layer of every workload has a row, every number of slots too."""
    lines = report_tables(two).splitlines()
    for layer in ("1", "2", "39"):
        assert sum(line.split()[:1] == [layer] for line in lines) >= 2
    assert any(line.split() == ["slots", "of", "the", *POLICIES] for line in lines)
    top = f"{two.uses[0][0].top_share:.0%}"
    assert any(line.split()[:2] == ["1", top] for line in lines)
    best = [f"{two.hit_rates[0].rates[policy][-1]:.1%}" for policy in POLICIES]
    assert any(line.split()[2:] == best for line in lines)


def test_one_workload_has_no_overlap_and_one_layer_no_mean() -> None:
    """Nothing is shown that needs two."""
    alone = report_tables(report(random_routing(LAYERS[:1], {"code": 30})))
    assert "Overlap" not in alone
    assert "mean" not in alone


def test_progress_is_heard_as_often_as_announced() -> None:
    """So that a bar ends at its end."""
    routing, heard = random_routing(LAYERS, {"a": 20, "b": 20}), []
    report_on(routing, (2,), (), lambda: heard.append(1))
    assert len(heard) == n_steps(routing)


@pytest.mark.parametrize("n_expert", [1, 2, 8, 32, 128, 384])
def test_slot_counts_are_possible_and_rise(n_expert: int) -> None:
    """From 1 to all experts, each once."""
    slots = slot_counts(Routing("0" * 32, (RoutedLayer(0, 1, 1), RoutedLayer(1, n_expert, 1)), ()))
    assert list(slots) == sorted(set(slots))
    assert 1 <= slots[0] <= slots[-1] <= n_expert


def test_programs_get_every_figure(two: RoutingReport) -> None:
    """The tables' figures at full precision, as JSON can hold them."""
    data = json.loads(json.dumps(two.to_dict(), allow_nan=False))
    assert [layer["index"] for layer in data["layers"]] == [1, 2, 39]
    for workload, uses, rates in zip(data["workloads"], two.uses, two.hit_rates, strict=True):
        assert [layer["top_share"] for layer in workload["layers"]] == [use.top_share for use in uses]
        assert workload["hit_rates"]["rates"] == {policy: list(rates.rates[policy]) for policy in POLICIES}
    assert len(data["overlaps"]) == 2


@pytest.mark.parametrize("n_workloads", [1, 2, 6])
def test_the_figure_is_a_picture(n_workloads: int, tmp_path: Path) -> None:
    """A PNG file with something drawn on it, a panel for each workload and one for coverage."""
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / "f.png"
    write_figure(report(random_routing(LAYERS, {f"w{i}": 20 for i in range(n_workloads)})), "A model", path)
    pixels = imread(path)
    assert pixels.shape[1] > 500 * min(3, 1 + n_workloads)
    assert np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).shape[0] > 50


def test_the_figures_lines_are_the_reports(two: RoutingReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a policy, through the report's own rates; coverage curves go from nothing to everything."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    write_figure(two, "A model", tmp_path / "f.png")
    covered, *panels = drawn[0].axes
    for line in covered.lines:
        assert (line.get_ydata()[0], line.get_ydata()[-1]) == (0, pytest.approx(100))
    for panel, rates in zip(panels, two.hit_rates, strict=True):
        assert [line.get_label() for line in panel.lines] == list(POLICIES)
        for line, policy in zip(panel.lines, POLICIES, strict=True):
            assert line.get_xdata().tolist() == list(rates.slots)
            assert line.get_ydata() == pytest.approx([100 * rate for rate in rates.rates[policy]])


def test_a_figure_that_cannot_be_written_is_one_error(two: RoutingReport, tmp_path: Path) -> None:
    """A folder in its place."""
    pytest.importorskip("matplotlib")
    (tmp_path / "f.png").mkdir()
    with pytest.raises(MoetuneError, match="cannot be written") as caught:
        write_figure(two, "A model", tmp_path / "f.png")
    assert caught.value.code is ExitCode.STORAGE
