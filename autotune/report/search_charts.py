"""The trials as charts: how fast the search got there, and what speed goes with."""

from itertools import accumulate

from moetune.autotune.evaluate import fastest
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.report.chart import Axis, Chart, Mark, Point, Series
from moetune.autotune.shelf import StoredStudy
from moetune.autotune.words import describe

_MIB = 1 << 20
_ORIGINS = {
    Origin.BASELINE: "baselines",
    Origin.SEED: "seeds",
    Origin.SAMPLER: "sampler",
    Origin.LOOK: "measured again",
}
_NOTHING = "No trial of this study was measured."
_TIMES = (("s", 1.0, 300.0), ("min", 60.0, 18_000.0), ("h", 3600.0, float("inf")))
# Of the axis of regret: how many times the largest regret of the best so far is shown.
_SHOWN = 1.5


def regret_chart(study: StoredStudy) -> Chart:
    """How far the best so far was from the best of all, against the time that was spent on measuring."""
    best = fastest(study.records)
    unit, seconds = _unit(sum(record.wall_s for record in study.records))
    spent = [at / seconds for at in accumulate(record.wall_s for record in study.records)]
    timed = [(at, record, record.turn_s) for at, record in zip(spent, study.records, strict=True)]
    measured = [(at, record, turn_s) for at, record, turn_s in timed if turn_s is not None]
    least = best.turn_s if best is not None and best.turn_s else 1.0
    so_far = accumulate((turn_s for _, _, turn_s in measured), min)
    line = [Point(at, 100 * (low / least - 1)) for (at, _, _), low in zip(measured, so_far, strict=True)]
    if line:
        line.append(Point(spent[-1], line[-1].y))
    top = max(10.0, *(_SHOWN * point.y for point in line)) if line else 10.0
    series = [Series("best so far", tuple(line), Mark.STEPS)]
    for origin, name in _ORIGINS.items():
        own = [
            Point(at, 100 * (turn_s / least - 1), _words(record, study))
            for at, record, turn_s in measured
            if record.origin is origin
        ]
        series.append(Series(name, tuple(point for point in own if point.y <= top), Mark.HOLLOW))
    beyond = sum(100 * (turn_s / least - 1) > top for _, _, turn_s in measured)
    return Chart(
        key="regret",
        title="Regret over time",
        caption="How much slower than the best trial of all, against the time spent on measuring. "
        + (f"{beyond} slower trials lie above the picture. " if beyond else "")
        + "The best is one measurement each, not yet a proof.",
        x=Axis(f"time spent on measuring, {unit}"),
        y=Axis("slower than the best, %", limits=(-0.04 * top, 1.04 * top)),
        series=tuple(each for each in series if each.points),
        empty="" if measured else _NOTHING,
    )


def speed_chart(study: StoredStudy) -> Chart:
    """Prompt processing against token generation, device memory as colour."""
    series = [
        Series(
            name,
            tuple(
                Point(m.pp_tps, m.tg_tps, _words(record, study), shade=m.fast_bytes / _MIB)
                for record in study.records
                if record.origin is origin and (m := record.measurement) is not None
            ),
        )
        for origin, name in _ORIGINS.items()
    ]
    kept = tuple(each for each in series if each.points)
    return Chart(
        key="speed-and-memory",
        title="Prompt processing, token generation and memory",
        caption="Every trial; up and to the right is faster, the colour is the memory it took on the fast tier. pp and "
        "tg are never averaged: the turn time of the workload weighs them.",
        x=Axis("pp, tok/s"),
        y=Axis("tg, tok/s"),
        series=kept,
        shade_title="fast tier, MiB",
        empty="" if kept else _NOTHING,
    )


def hit_chart(study: StoredStudy) -> Chart:
    """The hit rate that each trial with slots reached."""
    by_policy: dict[str, list[Point]] = {}
    for record in study.records:
        measured, cache = record.measurement, record.config.cache
        rate = measured.counters.hit_rate if measured is not None and measured.counters is not None else None
        if measured is not None and cache is not None and cache.on and rate is not None:
            words = f"{_words(record, study)}; {measured.tg_tps:,.3g} tok/s"
            by_policy.setdefault(str(cache.policy), []).append(
                Point(measured.slots, 100 * rate, words, shade=measured.tg_tps)
            )
    most = max((point.x for points in by_policy.values() for point in points), default=0.0)
    return Chart(
        key="hit-rates",
        title="Hit rate against slots",
        caption="Share of routed (token, expert) pairs that slots served, for every trial with a cache. A higher hit "
        "rate is not always faster: the colour is the speed of token generation.",
        x=Axis("slots a layer", limits=(0.0, 1.05 * most) if most else None),
        y=Axis("hit rate, %", limits=(-2.0, 102.0)),
        series=tuple(Series(policy, tuple(points)) for policy, points in sorted(by_policy.items())),
        shade_title="tg, tok/s",
        empty="" if by_policy else "No trial with expert slots was measured.",
    )


def failures(study: StoredStudy) -> list[tuple[str, str]]:
    """Every trial without a figure: what it was, and why."""
    return [(_words(record, study), record.failure) for record in study.records if record.failure is not None]


def _unit(total_s: float) -> tuple[str, float]:
    return next((name, seconds) for name, seconds, most in _TIMES if total_s <= most)


def _words(record: TrialRecord, study: StoredStudy) -> str:
    words = describe(record.config, study.identity.n_layers)
    return f"{record.name}: {words}" if record.name else words
