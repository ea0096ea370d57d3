"""Charts as PNG files, drawn by matplotlib."""

from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from moetune.autotune.report.chart import Axis, Chart, Mark, Point, Series
from moetune.autotune.report.draw_png_optuna import optuna_figure, plain_log
from moetune.autotune.report.parameters import OptunaPlot
from moetune.errors import ExitCode, MoetuneError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "P", "X")
_DPI = 130
_SIZE = (8.0, 4.8)
_ROW_INCHES = 0.55
_CAPTION_WIDTH = 120
# Names out of files: a dollar sign begins no formula.
_STYLE: Any = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
}


def write_png(figure: Chart | OptunaPlot, subject: str, path: Path) -> None:
    """Draw one chart that is not empty. subject: what it is of, below its title. Raises MoetuneError (STORAGE)."""
    with mpl.rc_context({**_STYLE, "backend": "Agg"}):
        drawn = _own(figure) if isinstance(figure, Chart) else optuna_figure(figure)
        drawn.suptitle(f"{figure.title}\n{subject}", fontsize=10)
        drawn.supxlabel(fill(figure.caption, _CAPTION_WIDTH), fontsize=8, color="0.35")
        try:
            drawn.savefig(path, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        except OSError as error:
            raise MoetuneError(
                f"The picture {path} cannot be written: {error.strerror or error}.",
                "Give --png a folder that can be written to.",
                ExitCode.STORAGE,
            ) from error
        finally:
            drawn.clear()


def _own(chart: Chart) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = chart.y.rows
    size = (_SIZE[0], 1.9 + _ROW_INCHES * len(rows)) if rows else _SIZE
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = [p.shade for series in chart.series for p in series.points if p.shade is not None]
    norm = mpl.colors.Normalize(min(shades), max(shades)) if shades else None
    for series, colour, marker in zip(chart.series, cycle(_COLOURS), cycle(_MARKERS)):
        _draw(axes, series, colour, marker, norm, rows=bool(rows))
    if norm is not None:
        figure.colorbar(mpl.cm.ScalarMappable(norm, "viridis"), ax=axes, label=chart.shade_title)
    for guide, dash in zip(chart.guides, cycle(("--", ":"))):
        line = axes.axvline if rows else axes.axhline
        line(guide.value, color="0.35", linestyle=dash, linewidth=1, label=guide.label)
    _set_x(axes, chart.x)
    _set_y(axes, chart.y)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, fontsize=9, frameon=False)
    return figure


def _draw(
    axes: "Axes", series: Series, colour: str, marker: str, norm: "mpl.colors.Normalize | None", *, rows: bool
) -> None:
    xs, ys = [p.x for p in series.points], [p.y for p in series.points]
    look: dict[str, Any] = {"color": colour, "label": series.name}
    if series.mark is Mark.STEPS:
        axes.step(xs, ys, where="post", linewidth=2, **look)
    elif series.mark is Mark.BARS:
        axes.plot(xs, ys, linestyle="", marker="|", markersize=20, markeredgewidth=3, **look)
    elif norm is not None:
        shades = [p.shade or 0.0 for p in series.points]
        axes.scatter(
            xs, ys, c=shades, norm=norm, cmap="viridis", marker=marker, s=55, edgecolors="white", label=series.name
        )
    else:
        face = "none" if series.mark is Mark.HOLLOW else colour
        axes.plot(xs, ys, linestyle="", marker=marker, markersize=6, markerfacecolor=face, **look)
    for point in (p for p in series.points if p.tag):
        axes.annotate(point.tag, (point.x, point.y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    if any(p.spread for p in series.points):
        spread = _spread(series.points, along_x=rows)
        across, along = (spread, None) if rows else (None, spread)
        axes.errorbar(xs, ys, xerr=across, yerr=along, fmt="none", ecolor=colour, capsize=3, linewidth=2)


def _spread(points: tuple[Point, ...], *, along_x: bool) -> list[list[float]]:
    centres = [p.x if along_x else p.y for p in points]
    spreads = [p.spread or (centre, centre) for p, centre in zip(points, centres, strict=True)]
    below = [centre - low for (low, _), centre in zip(spreads, centres, strict=True)]
    return [below, [high - centre for (_, high), centre in zip(spreads, centres, strict=True)]]


def _set_x(axes: "Axes", axis: Axis) -> None:
    axes.set_xlabel(axis.title)
    if axis.limits is not None:
        axes.set_xlim(*axis.limits)


def _set_y(axes: "Axes", axis: Axis) -> None:
    axes.set_ylabel(axis.title)
    if axis.log:
        axes.set_yscale("log")
        plain_log(axes.yaxis)
    if axis.rows:
        axes.set_yticks(range(len(axis.rows)), axis.rows)
        axes.set_ylim(len(axis.rows) - 0.5, -0.5)
    if axis.limits is not None:
        axes.set_ylim(*axis.limits)
