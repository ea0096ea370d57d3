"""Optuna's own plots as matplotlib figures, in the style of the other pictures."""

import warnings
from typing import TYPE_CHECKING

from moetune.autotune.report.parameters import OptunaPlot, PlotKind, evaluator_for, few_whole_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_SIZE = (8.0, 4.8)


def optuna_figure(plot: OptunaPlot) -> "Figure":
    """Optuna draws with pyplot, which is left as it was; the caller restores matplotlib's settings."""
    from matplotlib import pyplot

    _draw(plot)
    figure = pyplot.gcf()
    pyplot.close(figure)
    _tidy(figure.axes[0])
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set(fontsize=10, color="black")
            axis.set_tick_params(labelcolor="black", labelsize=10)
            if axis.get_scale() == "log":
                plain_log(axis)
    _unquote(figure.axes[0])
    if plot.kind is PlotKind.SLICE:
        _mark_counts(figure, few_whole_values(plot.study, *plot.parameters))
    figure.set_size_inches(*_SIZE)
    # Room for the caption.
    figure.subplots_adjust(bottom=0.2)
    return figure


def _draw(plot: OptunaPlot) -> None:
    import optuna.visualization.matplotlib as optuna_matplotlib

    names, turn = list(plot.parameters), "turn time, s"
    with warnings.catch_warnings():
        # All of these plots are "experimental".
        warnings.simplefilter("ignore")
        match plot.kind:
            case PlotKind.IMPORTANCES:
                optuna_matplotlib.plot_param_importances(plot.study, evaluator=evaluator_for(plot.study), params=names)
            case PlotKind.SLICE:
                optuna_matplotlib.plot_slice(plot.study, names, target_name=turn)
            case PlotKind.CONTOUR:
                optuna_matplotlib.plot_contour(plot.study, names, target_name=turn)


def _tidy(axes: "Axes") -> None:
    axes.set_title("")
    axes.set_title("", loc="left")
    axes.set_facecolor("white")
    axes.grid(color="0.9")
    axes.spines[:].set(visible=True, color="black", linewidth=0.8)
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()
    if axes.get_ylabel() == "Hyperparameter":
        axes.set(xlabel="importance, all together 1", ylabel="")


def _unquote(axes: "Axes") -> None:
    """Categories are written as Python would, in quotes."""
    words = [label.get_text() for label in axes.get_xticklabels()]
    if any(word.startswith("'") for word in words):
        axes.set_xticks(axes.get_xticks(), [word.strip("'") for word in words])


def _mark_counts(figure: "Figure", values: list[int]) -> None:
    """Values of the parameter where they are, and no halves of trials on the scale beside."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    plot, *scales = figure.axes
    if values:
        plot.set_xticks(values, [f"{value:,}" for value in values])
        plot.xaxis.set_minor_locator(NullLocator())
    for scale in scales:
        scale.yaxis.set_major_locator(MaxNLocator(integer=True))
        scale.set_ylabel("trial")


def plain_log(axis: "Axis") -> None:
    """Labels without formulas, which the pictures' style does not have: names out of files may hold dollar signs."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
