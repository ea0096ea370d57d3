"""The final table: every baseline, the best configuration, and how each failed one failed; 80 columns at most."""

from collections.abc import Iterator
from textwrap import fill

from tabulate import tabulate

from moetune.autotune.evaluate import fastest
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.result import SearchResult
from moetune.autotune.verdict import figures_of
from moetune.autotune.words import describe, number
from moetune.profiles.schema import Figures

WIDTH = 80
_HEADERS = ("configuration", "pp tok/s", "tg tok/s", "turn s", "hits", "fast MiB")
_NAME_WIDTH = 26


def result_table(result: SearchResult) -> str:
    """The table, then what its last rows stand for and why rows have no figures."""
    rows, footnotes = [], []
    for name, record in _rows(result):
        figures = _figures(result, record)
        rows.append((_cut(name, _NAME_WIDTH), *(_cells(figures) if figures else ("failed", "", "", "", ""))))
        if record.failure:
            footnotes.append(_cut(f"{name}: {record.failure}", WIDTH))
    table = tabulate(rows, headers=_HEADERS, colalign=("left", *("right",) * 5), disable_numparse=True)
    best = _best_other(result)
    if best is not None:
        words = describe(best.config, result.space.model.n_layers)
        stands_for = fill(f"{_best_name(result)}: {words}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        footnotes[:0] = [stands_for, *_warmth(best)]
    return "\n".join([table, *footnotes])


def _warmth(record: TrialRecord) -> Iterator[str]:
    """What the figures above, of warm slots, do not tell."""
    measured = record.measurement
    if measured is None or not record.config.has_slots:
        return
    cold_s = measured.cold_turn_s(measured.n_prompt, len(measured.tg_samples_s))
    yield f"from empty slots on its first request takes {number(cold_s)} s"
    if not measured.steady:
        yield "its speed was still changing when its warm-up ended"


def _rows(result: SearchResult) -> list[tuple[str, TrialRecord]]:
    rows: list[tuple[str, TrialRecord]] = []
    named = [record for record in result.records if record.origin is Origin.BASELINE]
    for name in dict.fromkeys(record.name for record in named):
        family = [record for record in named if record.name == name]
        rows.append((name, fastest(family) or family[-1]))
    other = _best_other(result)
    if other is not None:
        rows.append((_best_name(result), other))
    return rows


def _best_name(result: SearchResult) -> str:
    return "best found (proven)" if result.verdict.proven else "best found (not proven)"


def _best_other(result: SearchResult) -> TrialRecord | None:
    """The winner, else the candidate that came closest side by side, else the fastest trial."""
    others = [record for record in result.records if record.origin is not Origin.BASELINE]
    fought = result.verdict.config if result.verdict.proven else result.verdict.rival
    return fastest([record for record in others if fought is None or record.config == fought])


def _figures(result: SearchResult, record: TrialRecord) -> Figures | None:
    """From the side-by-side where the configuration took part in one, else from its one trial."""
    if record.measurement is None or record.turn_s is None:
        return None
    verdict = result.verdict
    if verdict.interval is not None and verdict.baseline is not None and record.name == verdict.baseline_name:
        return verdict.baseline
    if verdict.proven and record.config == verdict.config:
        return verdict.result
    if verdict.rival_figures is not None and record.config == verdict.rival:
        return verdict.rival_figures
    return figures_of([record.measurement], [record.turn_s])


def _cells(figures: Figures) -> tuple[str, ...]:
    hits = "" if figures.hit_rate is None else f"{figures.hit_rate:.0%}"
    memory = figures.fast_bytes / (1 << 20)
    return (
        number(figures.pp_tps),
        number(figures.tg_tps),
        number(figures.turn_s),
        hits,
        f"{memory:,.0f}" if memory >= 100 else f"{memory:.1f}",
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
