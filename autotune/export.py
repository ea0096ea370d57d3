"""A study for other programs: everything as JSON, or one line a trial as CSV."""

import csv
import io
import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from moetune.autotune.record import RECORD
from moetune.autotune.shelf import StoredStudy, StoredTrial

EXPORT_VERSION = 1


def to_json(study: StoredStudy) -> str:
    """`to_dict` as text."""
    return json.dumps(to_dict(study), indent=1, ensure_ascii=False)


def to_dict(study: StoredStudy) -> dict[str, Any]:
    """Identity, every trial with its raw samples, every block of the side-by-side; seconds and bytes throughout."""
    return {
        "export_version": EXPORT_VERSION,
        "study": study.key,
        "identity": asdict(study.identity),
        "trials": [_trial(trial) for trial in study.trials],
        "blocks": [_block(block) for block in study.blocks],
    }


def summary_of(study: StoredStudy) -> dict[str, Any]:
    """What a list of studies says of one; best_turn_s is the turn time of its fastest trial."""
    return {
        "study": study.key,
        "identity": asdict(study.identity),
        "trials": len(study.records),
        "best_turn_s": study.best.turn_s if study.best is not None else None,
        "last_at": _time(study.last_at),
    }


def to_csv(study: StoredStudy) -> str:
    """A column for every field of any trial, named by its path, such as ``outcome.fast_bytes``; lists as JSON.

    Blocks of the side-by-side are no trials: only JSON has them.
    """
    rows = [flat(_trial(trial)) for trial in study.trials]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _trial(trial: StoredTrial) -> dict[str, Any]:
    record = RECORD.dump_python(trial.record, mode="json") if trial.record is not None else {}
    return {
        "number": trial.number,
        "state": trial.state,
        "worker": trial.worker,
        "began": _time(trial.began),
        "ended": _time(trial.ended),
        "remark": trial.remark,
        "constraints": dict(trial.constraints),
        **{name: value for name, value in record.items() if name != "number"},
    }


def _block(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _time(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds") if at is not None else ""


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values of nested mappings by their path, such as ``outcome.fast_bytes``; lists as JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{path}{name}.")
        else:
            found[path + name] = json.dumps(value) if isinstance(value, list) else value
    return found
