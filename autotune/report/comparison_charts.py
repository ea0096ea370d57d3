"""Baselines and finalists as charts: what each measured, and what the race proves."""

import math
from textwrap import wrap

from moetune.autotune.race import Round
from moetune.autotune.report.chart import Axis, Chart, Guide, Mark, Point, Series
from moetune.autotune.report.contenders import Comparison, Contender

_ROW_WIDTH, _ROW_LINES = 34, 3
# An interval without a bound reaches this much further than everything that was measured.
_BEYOND = 1.25


def turn_chart(comparison: Comparison) -> Chart:
    """Every measured turn time of every contender."""
    shown = [contender for contender in comparison.contenders if contender.turns_s]
    trials = [Point(t.turn_s, i, c.words) for i, c in enumerate(shown) for t in c.trials if t.turn_s is not None]
    raced = [Point(run.turn_s, i, c.words) for i, c in enumerate(shown) for run in c.runs]
    medians = [Point(c.figures.turn_s, i, c.words) for i, c in enumerate(shown) if c.figures is not None]
    series = (
        Series("while searching", tuple(trials), Mark.HOLLOW),
        Series("side by side", tuple(raced)),
        Series("median", tuple(medians), Mark.BARS),
    )
    return Chart(
        key="turn-times",
        title="Turn time of baselines and finalists",
        caption="Seconds for one request of the workload; further left is faster. The median is of the side-by-side "
        "where there was one, since a trial that was chosen for its figure flatters.",
        x=Axis("turn time, s"),
        y=Axis("", rows=tuple(_row(contender) for contender in shown)),
        series=tuple(each for each in series if each.points),
        empty="" if shown else "No configuration was measured.",
    )


def gain_chart(comparison: Comparison) -> Chart:
    """What each finalist gains over the incumbent, round by round, and its interval."""
    race, incumbent = comparison.race, comparison.incumbent
    against = incumbent.name if incumbent is not None else "the best baseline"
    raced = [c for c in comparison.finalists if c.arm is not None and c.arm.interval is not None]
    rounds = [
        Point(gain, i, f"round {number}")
        for i, c in enumerate(raced)
        for number, gain in _gains(race.valid_rounds if race is not None else (), c)
    ]
    intervals = [
        Point(c.arm.interval.gain, i, str(c.arm.standing), (c.arm.interval.low, c.arm.interval.high))
        for i, c in enumerate(raced)
        if c.arm is not None and c.arm.interval is not None
    ]
    limits = _limits(rounds, intervals)
    confidence = next((c.arm.interval.confidence for c in raced if c.arm and c.arm.interval), 0.95)
    margin = race.margin if race is not None else 0.0
    return Chart(
        key="gains",
        title=f"Gain over {against}",
        caption=f"How many times as fast, in interleaved rounds, with the {confidence * 100:.4g} % interval that holds "
        "however often one looks. A finalist wins when its whole interval lies right of the dashed line; one that "
        "reaches the edge has no bound yet, for lack of rounds.",
        x=Axis("times as fast", limits=limits),
        y=Axis("", rows=tuple(_row(contender) for contender in raced)),
        series=(
            Series("one round", tuple(rounds), Mark.HOLLOW),
            Series("all rounds", tuple(_within(point, limits) for point in intervals)),
        ),
        guides=(Guide(1 + margin, f"worth having: {1 + margin:.2f}×"), Guide(1.0, "equal")) if raced else (),
        empty="" if raced else _why_no_race(comparison),
    )


def _why_no_race(comparison: Comparison) -> str:
    if comparison.damaged:
        return f"{comparison.damaged} rounds of the race are damaged, or of another version of moetune."
    return "Nothing was raced side by side: no trial came near the best baseline, or the search has not come that far."


def _row(contender: Contender) -> str:
    text = contender.name if contender.is_baseline else f"{contender.name}: {contender.words}"
    return "\n".join(wrap(text, _ROW_WIDTH, max_lines=_ROW_LINES, placeholder=" …"))


def _gains(rounds: tuple[Round, ...], contender: Contender) -> list[tuple[int, float]]:
    took_part = [(i, entry) for i, entry in enumerate(rounds, 1) if contender.config in entry.contenders[1:]]
    return [(i, math.exp(entry.log_gain(entry.contenders.index(contender.config, 1)))) for i, entry in took_part]


def _limits(rounds: list[Point], intervals: list[Point]) -> tuple[float, float]:
    bounds = [bound for point in intervals if point.spread for bound in point.spread if 0 < bound < math.inf]
    every = [1.0, *(point.x for point in rounds), *bounds]
    # Few rounds give bounds that would leave nothing else to be seen.
    middle = [1.0, *(point.x for point in (*rounds, *intervals))]
    low, high = max(min(every), min(middle) / _BEYOND), min(max(every), max(middle) * _BEYOND)
    pad = 0.03 * (high - low) or 0.05
    return low - pad, high + pad


def _within(point: Point, limits: tuple[float, float]) -> Point:
    low, high = point.spread or (point.x, point.x)
    return Point(point.x, point.y, point.label, (max(low, limits[0]), min(high, limits[1])))
