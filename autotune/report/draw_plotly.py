"""Charts as plotly figures, for the page."""

import json
import math
from html import escape
from itertools import cycle
from typing import Any

import optuna.visualization as optuna_plotly
import plotly.graph_objects as go

from moetune.autotune.report.chart import Axis, Chart, Guide, Mark, Point, Series
from moetune.autotune.report.parameters import OptunaPlot, PlotKind, evaluator_for, few_whole_values

# Okabe and Ito's colours, which people who see few colours can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_GREY, _GRID = "#555555", "#e3e3e3"
_ROW_PX, _HEAD_PX, _HEIGHT_PX, _SMALL_PX = 52, 130, 420, 330


def plotly_json(figure: Chart | OptunaPlot) -> dict[str, Any]:
    """`data` and `layout` as plotly.js takes them; the title stands in the page."""
    drawn = _own(figure) if isinstance(figure, Chart) else _of_optuna(figure)
    drawn.update_layout(
        template="none",
        title=None,
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    drawn.update_xaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    # Without a distance of its own the title ignores how wide the numbers are.
    drawn.update_yaxes(gridcolor=_GRID, zeroline=False, automargin=True, title_standoff=12)
    content: dict[str, Any] = json.loads(drawn.to_json())
    return content


def _own(chart: Chart) -> go.Figure:
    rows = chart.y.rows
    figure = go.Figure([_trace(*each, chart) for each in zip(chart.series, cycle(COLOURS), cycle(_SYMBOLS))])
    figure.update_layout(
        height=_HEAD_PX + _ROW_PX * len(rows) if rows else _HEIGHT_PX,
        margin={"l": 70, "r": 30, "t": 46, "b": 56},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    if chart.shade_title:
        figure.add_traces([_legend_entry(*each) for each in zip(chart.series, cycle(_SYMBOLS), strict=False)])
        figure.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": {"title": {"text": chart.shade_title}}})
    figure.update_xaxes(**_axis(chart.x))
    figure.update_yaxes(**_axis(chart.y))
    for guide, dash in zip(chart.guides, cycle(("dash", "dot"))):
        _add_guide(figure, guide, dash, chart)
    return figure


def _add_guide(figure: go.Figure, guide: Guide, dash: str, chart: Chart) -> None:
    rows = bool(chart.y.rows)
    line = {"line_dash": dash, "line_color": _GREY, "line_width": 1}
    figure.add_vline(guide.value, **line) if rows else figure.add_hline(guide.value, **line)
    # On a logarithmic axis plotly takes positions of lines as values, and of notes as exponents.
    at = math.log10(guide.value) if chart.y.log else guide.value
    where: dict[str, Any] = {"x": at, "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    if not rows:
        where = {"x": 0, "y": at, "xref": "paper", "xanchor": "left", "yanchor": "bottom", "xshift": 4}
    figure.add_annotation(text=_plain(guide.label), showarrow=False, font={"size": 11, "color": _GREY}, **where)


def _legend_entry(series: Series, symbol: str) -> go.Scatter:
    """For points whose colour says something else: their shape alone."""
    marker = {"symbol": symbol, "size": 9, "color": _GREY}
    return go.Scatter(x=[None], y=[None], name=_plain(series.name), mode="markers", marker=marker)


def _trace(series: Series, colour: str, symbol: str, chart: Chart) -> go.Scatter:
    points, rows = series.points, bool(chart.y.rows)
    shown: dict[str, Any] = {"x": [p.x for p in points], "y": [p.y for p in points], "name": _plain(series.name)}
    if series.mark is Mark.STEPS:
        return go.Scatter(**shown, mode="lines", line={"shape": "hv", "color": colour, "width": 2}, hoverinfo="skip")
    marker: dict[str, Any] = {"size": 9, "symbol": symbol, "color": colour}
    if series.mark is Mark.HOLLOW:
        marker |= {"size": 8, "symbol": f"{symbol}-open", "line": {"width": 1.5, "color": colour}}
    elif series.mark is Mark.BARS:
        marker |= {"size": 22, "symbol": "line-ns", "line": {"width": 3, "color": colour}}
    if chart.shade_title:
        marker |= {"color": [p.shade for p in points], "coloraxis": "coloraxis", "size": 11}
        marker["line"] = {"width": 1, "color": "white"}
        shown["showlegend"] = False
    if any(p.spread for p in points):
        shown["error_x" if rows else "error_y"] = _spread(points, colour, along_x=rows)
    value = "%{x:.4g}" if rows else "%{x:.4g}, %{y:.4g}"
    template = f"%{{customdata}}<br>{value}<extra>{_plain(series.name)}</extra>"
    text = [_plain(p.tag) for p in points]
    hover = [_plain(p.label) for p in points]
    mode = "markers+text" if any(p.tag for p in points) else "markers"
    return go.Scatter(
        **shown,
        mode=mode,
        marker=marker,
        text=text,
        textposition="middle right",
        customdata=hover,
        hovertemplate=template,
    )


def _spread(points: tuple[Point, ...], colour: str, *, along_x: bool) -> dict[str, Any]:
    centres = [p.x if along_x else p.y for p in points]
    spreads = [p.spread or (centre, centre) for p, centre in zip(points, centres, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - centre for (_, high), centre in zip(spreads, centres, strict=True)],
        "arrayminus": [centre - low for (low, _), centre in zip(spreads, centres, strict=True)],
        "color": colour,
        "thickness": 2,
    }


def _axis(axis: Axis) -> dict[str, Any]:
    if axis.rows:
        names = [_plain(row).replace("\n", "<br>") for row in axis.rows]
        return {"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5]}
    shown: dict[str, Any] = {"title": {"text": _plain(axis.title)}, "type": "log" if axis.log else "linear"}
    if axis.limits is not None:
        shown["range"] = list(axis.limits)
    if axis.log:
        shown |= {"dtick": 1, "exponentformat": "power"}
    return shown


def _of_optuna(plot: OptunaPlot) -> go.Figure:
    names = list(plot.parameters)
    match plot.kind:
        case PlotKind.IMPORTANCES:
            importances = optuna_plotly.plot_param_importances(
                plot.study, evaluator=evaluator_for(plot.study), params=names
            )
            height = _HEAD_PX + 26 * len(names)
            importances.update_xaxes(title={"text": "importance, all together 1"})
            importances.update_yaxes(title={"text": ""})
            return importances.update_layout(height=height, margin={"l": 70, "r": 40, "t": 20, "b": 56})
        case PlotKind.SLICE:
            figure = optuna_plotly.plot_slice(plot.study, names, target_name="turn time, s")
            figure.update_traces(marker={"size": 9, "showscale": False})
            if marks := few_whole_values(plot.study, *names):
                figure.update_xaxes(tickvals=marks)
        case PlotKind.CONTOUR:
            figure = optuna_plotly.plot_contour(plot.study, names, target_name="turn, s")
    # Optuna writes categories as Python would, in quotes.
    words = {f"'{word}'": word for word in _categories(plot)}
    figure.update_xaxes(labelalias=words)
    figure.update_yaxes(labelalias=words)
    return figure.update_layout(height=_SMALL_PX, margin={"l": 60, "r": 20, "t": 20, "b": 56})


def _categories(plot: OptunaPlot) -> set[str]:
    return {value for trial in plot.study.trials for value in trial.params.values() if isinstance(value, str)}


def _plain(text: str) -> str:
    """Text that plotly takes for no markup."""
    return escape(text, quote=False)
