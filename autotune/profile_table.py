"""Profiles as tables for people: all of them, one, and two side by side; 80 columns."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from pydantic import TypeAdapter
from tabulate import tabulate

from moetune.autotune.export import flat
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.profiles.schema import Figures, Profile, to_data
from moetune.profiles.store import name_of

_LIST_HEADERS = ("profile", "model", "machine", "ctx", "workload", "gain", "here")
_LIST_WIDTHS = (8, 14, 20, 7, 8, 5, 4)
_FACT_WIDTH = 62
_DIFF_WIDTHS = (34, 21, 21)
_NONE = "–"
_CONFIG = TypeAdapter(EngineConfig)


def profiles_table(profiles: Sequence[tuple[Profile, str | None]]) -> str:
    """One row a profile; beside it, why it does not hold here, None where it does."""
    return _table([_row(profile, foreign) for profile, foreign in profiles], _LIST_HEADERS, _LIST_WIDTHS)


def profile_table(profile: Profile, foreign: str | None) -> str:
    """What it is for, what was said, the figures of both sides, and every setting that is not llama.cpp's usual one."""
    facts = [
        ("profile", name_of(profile)),
        ("model", f"{profile.model_name} ({profile.model_fingerprint[:16]})"),
        ("machine", profile.machine_label),
        ("emulated", profile.emulated or ""),
        ("engine", profile.engine_version),
        ("context", f"{profile.n_ctx:,} tokens"),
        ("workload", profile.workload),
        ("made", f"{profile.created_at[:10]} by moetune {profile.moetune_version}"),
        ("holds here", "yes" if foreign is None else f"no: {foreign}"),
        ("verdict", profile.verdict.sentence),
        ("settings", ", ".join(_unusual(profile.config))),
    ]
    figures = [("this profile", *_cells(profile.result)), (profile.baseline_name, *_cells(profile.baseline))]
    headers = ("configuration", "pp tok/s", "tg tok/s", "turn s", "hits", "fast MiB")
    return "\n\n".join(
        [
            tabulate(
                [(name, "\n".join(wrap(text, _FACT_WIDTH))) for name, text in facts if text],
                tablefmt="plain",
                disable_numparse=True,
            ),
            tabulate(
                [("\n".join(wrap(name, 26)), *cells) for name, *cells in figures],
                headers=headers,
                colalign=("left", *("right",) * 5),
                disable_numparse=True,
            ),
        ]
    )


def differences(one: Profile, other: Profile) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, by their path; None where one side has no such field."""
    ours, theirs = flat(to_data(one)), flat(to_data(other))
    names = dict.fromkeys([*ours, *theirs])
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


def differences_table(differing: Mapping[str, tuple[Any, Any]], names: tuple[str, str]) -> str:
    """One row a field; of long names of files the end is shown."""
    rows = [(field, *(_NONE if value is None else str(value) for value in both)) for field, both in differing.items()]
    headers = ("field", *(name[-width:] for name, width in zip(names, _DIFF_WIDTHS[1:], strict=True)))
    return _table(rows, headers, _DIFF_WIDTHS)


def _row(profile: Profile, foreign: str | None) -> tuple[str, ...]:
    return (
        name_of(profile)[:8],
        profile.model_name,
        profile.machine_label,
        str(profile.n_ctx),
        profile.workload,
        f"{profile.gain:.2f}×",
        "yes" if foreign is None else "no",
    )


def _unusual(config: EngineConfig) -> list[str]:
    """Threads and slots have no usual number."""
    usual = flat(_plain(EngineConfig(n_ctx=config.n_ctx, n_threads=0, cache=CacheKnobs(slots=-1))))
    return [f"{name} {value}" for name, value in flat(_plain(config)).items() if value != usual.get(name)]


def _plain(config: EngineConfig) -> dict[str, Any]:
    data: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return data


def _cells(figures: Figures) -> tuple[str, ...]:
    hits = "" if figures.hit_rate is None else f"{figures.hit_rate:.0%}"
    speeds = (f"{figures.pp_tps:,.1f}", f"{figures.tg_tps:,.1f}", f"{figures.turn_s:.3g}")
    return (*speeds, hits, f"{figures.fast_bytes / (1 << 20):,.1f}")


def _table(rows: Sequence[Sequence[str]], headers: tuple[str, ...], widths: tuple[int, ...]) -> str:
    # tabulate pads headers by two columns, which 80 have no room for.
    wrapped = [["\n".join(wrap(cell, width)) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [headers, ["-" * len(header) for header in headers], *wrapped]
    return tabulate(lines, tablefmt="plain", disable_numparse=True)
