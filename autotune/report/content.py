"""Everything a report says, but for its charts, in the words it is said in."""

import math
from dataclasses import dataclass
from datetime import datetime

from moetune.autotune.report.chart import Chart
from moetune.autotune.report.comparison_charts import gain_chart, turn_chart
from moetune.autotune.report.contenders import Comparison, Contender, comparison_of
from moetune.autotune.report.parameters import OptunaPlot, PlotKind, optuna_plots
from moetune.autotune.report.quality_chart import Known, quality_chart
from moetune.autotune.report.search_charts import failures, hit_chart, regret_chart, speed_chart
from moetune.autotune.sequential import Interval
from moetune.autotune.shelf import StoredStudy
from moetune.autotune.study_table import study_table
from moetune.autotune.verdict import VerdictKind
from moetune.engine.config import KvType
from moetune.engine.model import Model
from moetune.hardware.machine import Machine
from moetune.hardware.render import machine_table, size_text

Facts = tuple[tuple[str, str], ...]
_HEADLINES = {
    VerdictKind.CACHE_WINS: "The hot-expert cache wins.",
    VerdictKind.OTHER_SETTING_WINS: "Other settings win, without the cache.",
    VerdictKind.NO_PROVEN_IMPROVEMENT: "Nothing beat the baseline: keep it.",
    VerdictKind.NO_BASELINE: "No baseline ran.",
    VerdictKind.NOTHING_RAN: "Nothing ran.",
}
_NO_VERDICT = "This study holds no verdict: its search has not come to its end, or an older moetune made it."
_HEADS = ("turn s", "range", "pp tok/s", "tg tok/s", "hits", "fast MiB", "gain", "interval")
_MIB = 1 << 20


@dataclass(frozen=True)
class Sources:
    """What a report is made from. model, machine: None where they are not at hand; known_quality: of the model."""

    study: StoredStudy
    model: Model | None
    machine: Machine | None
    known_quality: Known


@dataclass(frozen=True)
class ShownVerdict:
    """headline: the short of it."""

    headline: str
    sentence: str
    proven: bool


@dataclass(frozen=True)
class Row:
    """One contender in the table; cells stand under `contender_heads`."""

    name: str
    words: str
    cells: tuple[str, ...]
    standing: str


@dataclass(frozen=True)
class Section:
    """Charts under one heading, "" for none. small: several in a row."""

    title: str
    figures: tuple[Chart | OptunaPlot, ...]
    small: bool = False


@dataclass(frozen=True)
class Report:
    """One page. emulated: the machine's label where it is an emulated one, else "". written: local date and time."""

    title: str
    about: str
    emulated: str
    verdict: ShownVerdict
    contender_heads: tuple[str, ...]
    contender_rows: tuple[Row, ...]
    sections: tuple[Section, ...]
    failures: tuple[tuple[str, str], ...]
    model: Facts
    machine: str
    machine_label: str
    study: Facts
    trials: str
    version: str
    written: str

    @property
    def figures(self) -> tuple[Chart | OptunaPlot, ...]:
        """All of them, in the order of the page."""
        return tuple(figure for section in self.sections for figure in section.figures)


def report_of(sources: Sources, *, version: str, now: datetime) -> Report:
    """The whole report; nothing is measured for it."""
    study, identity = sources.study, sources.study.identity
    comparison = comparison_of(study)
    return Report(
        title=f"{identity.model_name}: {identity.workload}, {identity.n_ctx:,} tokens of context",
        about=identity.machine_label,
        emulated=identity.machine_label if "(emulated)" in identity.machine_label else "",
        verdict=_verdict(study),
        contender_heads=_HEADS,
        contender_rows=tuple(_row(contender) for contender in comparison.contenders),
        sections=_sections(sources, comparison),
        failures=tuple(failures(study)),
        model=_model(sources),
        machine=machine_table(sources.machine) if sources.machine is not None else "",
        machine_label=identity.machine_label,
        study=_study(study, comparison),
        trials=study_table(study),
        version=version,
        written=f"{now:%Y-%m-%d %H:%M}",
    )


def _verdict(study: StoredStudy) -> ShownVerdict:
    if study.verdict is None:
        return ShownVerdict("No verdict yet.", _NO_VERDICT, proven=False)
    kind = next((kind for kind in VerdictKind if kind == study.verdict.kind), None)
    proven = kind in (VerdictKind.CACHE_WINS, VerdictKind.OTHER_SETTING_WINS)
    headline = _HEADLINES.get(kind, "") if kind is not None else ""
    return ShownVerdict(headline or "The verdict", study.verdict.sentence, proven)


def _sections(sources: Sources, comparison: Comparison) -> tuple[Section, ...]:
    study = sources.study
    plots = optuna_plots(study)
    slices = tuple(plot for plot in plots if plot.kind is PlotKind.SLICE)
    contours = tuple(plot for plot in plots if plot.kind is PlotKind.CONTOUR)
    importances = tuple(plot for plot in plots if plot.kind is PlotKind.IMPORTANCES)
    return (
        Section("", (turn_chart(comparison), gain_chart(comparison))),
        Section("How the search went", (regret_chart(study), *importances)),
        Section("Slices: turn time against one parameter", slices, small=True),
        Section("Contours: turn time against two", contours, small=True),
        Section("What speed goes with", (speed_chart(study), hit_chart(study), quality_chart(sources.known_quality))),
    )


def _row(contender: Contender) -> Row:
    figures, interval = contender.figures, contender.arm.interval if contender.arm is not None else None
    standing = "the one to beat" if contender.is_incumbent else str(contender.arm.standing) if contender.arm else ""
    if figures is None:
        return Row(contender.name, contender.words, ("–",) * len(_HEADS), contender.failure or "not measured")
    turns = contender.turns_s
    cells = (
        _seconds(figures.turn_s),
        f"{_seconds(min(turns))}–{_seconds(max(turns))}, n={len(turns)}",
        f"{figures.pp_tps:,.4g}",
        f"{figures.tg_tps:,.4g}",
        "" if figures.hit_rate is None else f"{figures.hit_rate:.0%}",
        f"{figures.fast_bytes / _MIB:,.1f}",
        f"{interval.gain:.2f}×" if interval is not None else "",
        _bounds(interval) if interval is not None else "",
    )
    return Row(contender.name, contender.words, cells, standing)


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _bounds(interval: Interval) -> str:
    """Few rounds may leave a side open."""
    if interval.low <= 0 and math.isinf(interval.high):
        return "no bounds yet"
    return f"{interval.low:.2f}–" + ("" if math.isinf(interval.high) else f"{interval.high:.2f}")


def _model(sources: Sources) -> Facts:
    model, identity = sources.model, sources.study.identity
    if model is None:
        why = "give `moetune report` the model's file to see what it is made of"
        return (("name", identity.model_name), ("layers", str(identity.n_layers)), ("more", why))
    experts = f"{model.n_expert} a layer, {model.n_expert_used} used" if model.is_moe else "none: a dense model"
    largest = max((layer.expert_bytes for layer in model.layers), default=0)
    return (
        ("name", model.name),
        ("file", model.path.name + (f" and {len(model.paths) - 1} more" if len(model.paths) > 1 else "")),
        ("architecture", model.architecture),
        ("quantisation", model.quant),
        ("layers", f"{model.n_layers}, {len(model.moe_layers)} with routed experts"),
        ("experts", experts),
        ("one expert", size_text(largest) if largest else "–"),
        ("routed experts", size_text(sum(layer.routed_bytes for layer in model.layers))),
        ("all weights", size_text(model.tensor_bytes)),
        ("KV cache, f16", f"{size_text(round(model.kv_bytes_per_token(KvType.F16, KvType.F16)))} a token"),
        ("trained for", f"{model.context_length:,} tokens" if model.context_length else "–"),
    )


def _study(study: StoredStudy, comparison: Comparison) -> Facts:
    rounds = comparison.race.rounds if comparison.race is not None else ()
    disturbed = sum(entry.disturbed is not None for entry in rounds)
    workers = {trial.worker.rsplit(":", 1)[0] for trial in study.trials if trial.worker}
    began = min((trial.began for trial in study.trials if trial.began), default=None)
    return (
        ("study", study.key),
        ("engine", study.identity.engine),
        ("device", study.identity.device),
        ("measured", f"{_when(began)} to {_when(study.last_at)}, on {', '.join(sorted(workers)) or '–'}"),
        ("trials", f"{len(study.records)}, {sum(r.turn_s is not None for r in study.records)} of them with a figure"),
        ("race", f"{len(rounds)} rounds, {disturbed} disturbed and not counted"),
    )


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "–"
