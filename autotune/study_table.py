"""Studies and their trials as tables for people; 80 columns."""

from collections.abc import Sequence
from datetime import datetime
from textwrap import wrap

from tabulate import tabulate

from moetune.autotune.record import Origin
from moetune.autotune.shelf import StoredStudy, StoredTrial
from moetune.autotune.words import describe

_LIST_HEADERS = ("study", "model", "machine", "ctx", "workload", "trials", "best s", "date")
_LIST_WIDTHS = (8, 10, 11, 6, 8, 6, 7, 10)
_TRIAL_HEADERS = ("no", "configuration", "turn s", "pp tok/s", "tg tok/s", "constraint", "by")
_TRIAL_WIDTHS = (4, 23, 6, 8, 8, 10, 9)


def studies_table(studies: tuple[StoredStudy, ...]) -> str:
    """One row a study; best is the turn time of its fastest trial."""
    rows = [
        (
            study.key[:8],
            study.identity.model_name,
            study.identity.machine_label,
            study.identity.n_ctx,
            study.identity.workload,
            len(study.records),
            _seconds(study.best.turn_s) if study.best else "–",
            f"{study.last_at:%Y-%m-%d}" if study.last_at else "–",
        )
        for study in studies
    ]
    return _table(rows, _LIST_HEADERS, _LIST_WIDTHS)


def study_table(study: StoredStudy) -> str:
    """What the study is about, a row a trial, and the side-by-side."""
    about = study.identity
    began = min((trial.began for trial in study.trials if trial.began), default=None)
    head = [
        ("study", study.key),
        ("model", about.model_name),
        ("machine", about.machine_label),
        ("engine", about.engine),
        ("device", about.device),
        ("context", f"{about.n_ctx:,} tokens"),
        ("workload", about.workload),
        ("measured", f"{_when(began)} to {_when(study.last_at)}"),
        ("side by side", f"{len(study.blocks)} blocks"),
    ]
    rows = [_trial_row(trial, about.n_layers) for trial in study.trials]
    facts = tabulate(
        [(name, "\n".join(wrap(value, 66))) for name, value in head], tablefmt="plain", disable_numparse=True
    )
    parts = [facts, _table(rows, _TRIAL_HEADERS, _TRIAL_WIDTHS)]
    if "(emulated)" in about.machine_label:
        parts.append("Emulated: no real device was measured.")
    return "\n\n".join(parts)


def _trial_row(trial: StoredTrial, n_layers: int) -> tuple[str, ...]:
    record, number = trial.record, str(trial.number)
    worker = trial.worker.rsplit("-", 1)[0]
    if record is None:
        return number, trial.remark or trial.state, "–", "–", "–", "–", worker
    words = describe(record.config, n_layers)
    what = f"{record.name}: {words}" if record.origin is Origin.BASELINE else words
    broken = [f"{name.replace('_', ' ')} {value:+.3g}" for name, value in trial.constraints.items() if value > 0]
    constraints = ", ".join(broken) or "met"
    measured = record.measurement
    if measured is None:
        return number, f"{what}; {record.failure}", "–", "–", "–", constraints, worker
    speeds = (f"{measured.pp_tps:,.1f}", f"{measured.tg_tps:,.1f}")
    return number, what, _seconds(record.turn_s), *speeds, constraints, worker


def _table(rows: Sequence[Sequence[object]], headers: tuple[str, ...], widths: tuple[int, ...]) -> str:
    # tabulate pads headers by two columns, which 80 have no room for, and its own wrapping trips over "1,234.5".
    wrapped = [["\n".join(wrap(str(cell), width)) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [headers, ["-" * len(header) for header in headers], *wrapped]
    return tabulate(lines, tablefmt="plain", disable_numparse=True)


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3g}"


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "–"
