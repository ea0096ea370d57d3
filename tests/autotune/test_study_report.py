"""The report of a study: what it says, what it draws, and that nothing in it can load or run anything else."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runner import FakeRunner, Landscape
from reported import MACHINE, MODEL, NOW, report_on, rich_search, run
from world import machine_with, request_for, runner_for, still

from moetune.autotune.events import Silent
from moetune.autotune.report.chart import Chart, Mark
from moetune.autotune.report.contenders import comparison_of
from moetune.autotune.report.content import Sources, report_of
from moetune.autotune.report.draw_plotly import plotly_json
from moetune.autotune.report.draw_png import write_png
from moetune.autotune.report.page import page_of
from moetune.autotune.report.parameters import OptunaPlot, PlotKind, optuna_plots
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.shelf import Journals, StoredStudy
from moetune.engine.config import KvType
from moetune.engine.measurement import FailureReason

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "$x$" \'{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchRequest, SearchResult, StoredStudy]:
    """A search with a proven winner, a failing corner, and a scored KV type."""
    return rich_search(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def page(searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> str:
    request, _, study = searched
    return page_of(report_on(study, request.state_dir))


class Parsed(HTMLParser):
    """Elements with their attributes, scripts, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.seen = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag if tag == "style" or dict(attrs).get("type") is None else "data"
            if self._inside == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.seen += data


def test_the_verdict_comes_first(page: str, searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> None:
    """In the search's own sentence, before any table or chart."""
    result = searched[1]
    assert result.verdict.proven
    seen = Parsed(page).seen
    assert seen.index(result.verdict.sentence) < seen.index("Baselines and finalists")
    assert seen.index("wins") < seen.index(result.verdict.sentence)


def test_the_kept_rounds_say_what_the_race_said(
    searched: tuple[SearchRequest, SearchResult, StoredStudy],
) -> None:
    """The same arms, standings and intervals, against the same baseline."""
    _, result, study = searched
    again = comparison_of(study).race
    assert result.race is not None
    assert again is not None
    assert again.arms == result.race.arms
    assert again.incumbent == result.race.incumbent


def test_the_table_holds_the_verdicts_figures(searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> None:
    """Every baseline has a row; the winner's median turn is the verdict's."""
    _, result, study = searched
    report = report_on(study)
    baselines = {record.name for record in result.records if record.name}
    assert baselines < {row.name for row in report.contender_rows}
    (winner,) = [row for row in report.contender_rows if row.standing == "won"]
    assert result.verdict.result is not None
    assert result.verdict.interval is not None
    assert winner.cells[0] == f"{result.verdict.result.turn_s:#.3g}"
    assert winner.cells[6] == f"{result.verdict.interval.gain:.2f}×"


def test_every_chart_has_data_or_says_why_not(
    page: str, searched: tuple[SearchRequest, SearchResult, StoredStudy]
) -> None:
    """Here all have; the data stand in the page under the chart's name."""
    request, _, study = searched
    figures = report_on(study, request.state_dir).figures
    assert [figure.key for figure in figures if figure.empty] == []
    kinds = {figure.kind for figure in figures if isinstance(figure, OptunaPlot)}
    assert kinds == set(PlotKind)
    for figure in figures:
        (content,) = re.findall(f'id="data-{figure.key}">(.*?)</script>', page)
        traces = json.loads(content)["data"]
        assert any(len(trace["x"] if isinstance(trace["x"], list) else trace["x"]["bdata"]) for trace in traces)


def test_charts_without_data_say_so(tmp_path: Path) -> None:
    """Where nothing runs, no chart is drawn and each has its reason."""
    landscape = Landscape(broken=lambda config: FailureReason.CRASHED)
    _, study = run(request_for(tmp_path, n_trials=2), landscape)
    report = report_on(study)
    assert all(figure.empty for figure in report.figures)
    seen = Parsed(page_of(report)).seen
    assert all(figure.empty in seen for figure in report.figures)
    assert "engine process crashed" in seen


def test_a_search_without_quantised_types_says_why_no_quality_is_shown(tmp_path: Path) -> None:
    """And one without slots why there is no hit rate."""
    machine = machine_with()
    request = request_for(tmp_path, n_trials=4, kv_types=(KvType.F16,))
    _, study = run(request, Landscape(noise=0.01), machine)
    empty = {figure.key: figure.empty for figure in report_on(study, tmp_path, machine).figures}
    assert "No quantised KV cache" in empty["quality"]
    assert "slots" in empty["hit-rates"]
    assert not empty["regret"]


def test_the_page_can_load_nothing_and_run_only_its_own_scripts(page: str) -> None:
    """No address in any element; a policy that forbids everything but two scripts, by their hashes."""
    parsed = Parsed(page)
    assert [(tag, a) for tag, a in parsed.elements if {"src", "href", "srcset", "action", "data"} & set(a)] == []
    (policy,) = [a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert "unsafe" not in policy.split("style-src")[0]
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in parsed.scripts] == allowed
    assert "@import" not in page.split("</style>", maxsplit=1)[0]


def test_names_from_files_stay_text(searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> None:
    """A model, machine, device or failure that is called like a script is shown, not run."""
    _, _, study = searched
    named = replace(study, identity=replace(study.identity, model_name=HOSTILE, machine_label=HOSTILE, device=HOSTILE))
    trial = next(trial for trial in study.trials if trial.record is not None and trial.record.turn_s is not None)
    assert trial.record is not None
    device = replace(trial, record=replace(trial.record, name=HOSTILE), params={**trial.params, "device": HOSTILE})
    others = tuple(each for each in study.trials if each is not trial)
    report = report_of(Sources(replace(named, trials=(device, *others)), None, None, []), version="1", now=NOW)
    parsed = Parsed(page_of(report))
    plain = Parsed(page_of(report_on(study)))
    assert len(parsed.scripts) == len(plain.scripts) == 2
    assert not [tag for tag, _ in parsed.elements if tag == "img"]
    assert HOSTILE in parsed.seen
    texts = json.dumps([plotly_json(figure) for figure in report.figures if not figure.empty], ensure_ascii=False)
    assert "<script" not in texts
    assert "<img" not in texts
    for figure in report.figures:
        if isinstance(figure, Chart) and not figure.empty:
            write_png(figure, HOSTILE, Path("/dev/null"))


def test_regret_falls_to_nothing(searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> None:
    """The best so far never gets worse, and ends at the best of all."""
    figures = {figure.key: figure for figure in report_on(searched[2]).figures}
    chart = figures["regret"]
    assert isinstance(chart, Chart)
    (line,) = [series for series in chart.series if series.mark is Mark.STEPS]
    values = [point.y for point in line.points]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0 == values[-1]
    times = [point.x for point in line.points]
    assert times == sorted(times)


def test_hit_rates_and_memory_are_those_measured(
    searched: tuple[SearchRequest, SearchResult, StoredStudy],
) -> None:
    """One point a trial with slots, and one a trial in the picture of speeds."""
    study = searched[2]
    figures = {figure.key: figure for figure in report_on(study).figures}
    hits, speed = figures["hit-rates"], figures["speed-and-memory"]
    assert isinstance(hits, Chart)
    assert isinstance(speed, Chart)
    cached = [r for r in study.records if r.measurement is not None and r.config.has_slots]
    shown = sorted((p.x, round(p.y, 6)) for series in hits.series for p in series.points)
    measured = [(r.measurement.slots, r.measurement.counters) for r in cached if r.measurement]
    assert shown == sorted((n, round(100 * c.hit_rate, 6)) for n, c in measured if c and c.hit_rate is not None)
    assert sum(len(series.points) for series in speed.series) == sum(r.measurement is not None for r in study.records)


def test_parameters_are_shown_by_their_values_and_only_where_they_matter(
    searched: tuple[SearchRequest, SearchResult, StoredStudy],
) -> None:
    """Threads as numbers of threads; no rebalance interval for stock llama.cpp."""
    study = searched[2]
    threads = {trial.params["n_threads"] for trial in study.trials if trial.record is not None}
    assert threads >= {record.config.n_threads for record in study.records}
    view = next(plot.study for plot in optuna_plots(study) if plot.kind is PlotKind.SLICE)
    measured = [record for record in study.records if record.turn_s is not None]
    assert [trial.value for trial in view.trials] == [record.turn_s for record in measured]
    for trial, record in zip(view.trials, measured, strict=True):
        assert ("rebalance interval, tokens" in trial.params) == record.config.has_slots
        assert trial.params["threads for tokens"] == record.config.n_threads


def test_pictures_show_the_same_charts(
    searched: tuple[SearchRequest, SearchResult, StoredStudy], tmp_path: Path
) -> None:
    """Every chart of the page becomes a PNG file with something on it."""
    from matplotlib.image import imread

    request, _, study = searched
    for figure in report_on(study, request.state_dir).figures:
        path = tmp_path / f"{figure.key}.png"
        write_png(figure, "a model", path)
        pixels = imread(path)[..., :3]
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 500
        assert 0.01 < (pixels.min(axis=2) < 0.9).mean() < 0.9


def test_an_interrupted_search_leaves_the_last_verdict(
    searched: tuple[SearchRequest, SearchResult, StoredStudy], tmp_path: Path
) -> None:
    """Without one the report says that there is none."""

    def stop(calls: int) -> None:
        if calls >= 4:
            raise KeyboardInterrupt

    request = replace(searched[0], state_dir=tmp_path)
    runner = runner_for(MACHINE, MODEL, Landscape(noise=0.01))
    runner.before = stop
    assert search(request, runner, MACHINE, MODEL, Silent(), still).interrupted
    (study,) = Journals(tmp_path).read().studies
    assert study.verdict is None
    assert "no verdict" in report_on(study).verdict.sentence

    result, study = run(request, Landscape(noise=0.01))
    assert study.verdict is not None
    assert study.verdict.sentence == result.verdict.sentence
    runner = FakeRunner(Landscape(noise=0.01), runner.memory, before=stop)
    search(replace(request, n_trials=60), runner, MACHINE, MODEL, Silent(), still)
    (study,) = Journals(tmp_path).read().studies
    assert study.verdict is not None
    assert study.verdict.sentence == result.verdict.sentence


def test_whatever_is_emulated_says_so(searched: tuple[SearchRequest, SearchResult, StoredStudy]) -> None:
    """Before the verdict."""
    study = searched[2]
    assert "Emulated" not in Parsed(page_of(report_on(study))).seen
    emulated = replace(study, identity=replace(study.identity, machine_label="A CPU, EMU0 (emulated)"))
    seen = Parsed(page_of(report_on(emulated))).seen
    assert seen.index("Emulated: A CPU") < seen.index("wins")
