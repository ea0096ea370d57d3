"""A recorded pass as a picture: coverage curves, and for each workload the hit rate against the number of slots."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moetune.engine.routing_analysis import coverage
from moetune.engine.routing_replay import OPTIMAL, POLICIES, SEEDED, HitRates
from moetune.engine.routing_report import RoutingReport
from moetune.errors import ExitCode, MoetuneError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people who see few colours can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_COLUMNS = 3
_PANEL_INCHES = (4.6, 4.0)
_DPI = 130
_GRID = 101


def check_plotting() -> None:
    """Raise MoetuneError (USAGE) now when there is no matplotlib, not after a long pass."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MoetuneError(
            "--figure needs matplotlib, which is not installed.",
            'Install it with: pip install "moetune[plot]"; or leave --figure out.',
            ExitCode.USAGE,
        ) from error


def write_figure(report: RoutingReport, title: str, path: Path) -> None:
    """Draw to the PNG file at `path`. Raises MoetuneError: STORAGE for a bad path, USAGE without matplotlib."""
    check_plotting()
    # Not pyplot: its windows and global state are of no use here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_panels = 1 + len(report.hit_rates)
    columns = min(n_panels, _MOST_COLUMNS)
    rows = -(-n_panels // columns)
    figure = Figure((_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(n_panels)]
    _draw_coverage(axes[0], report)
    for panel, rates in zip(axes[1:], report.hit_rates, strict=True):
        _draw_hit_rates(panel, rates, report.n_expert)
    try:
        figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
    except OSError as error:
        raise MoetuneError(
            f"The figure cannot be written to {path}: {error.strerror or error}.",
            "Give --figure a file in a folder that exists and is writable.",
            ExitCode.STORAGE,
        ) from error


def _draw_coverage(axes: "Axes", report: RoutingReport) -> None:
    x = np.linspace(0, 1, _GRID)
    for i, (workload, counts) in enumerate(zip(report.routing.workloads, report.routing.counts, strict=True)):
        curves = np.stack([np.interp(x, np.linspace(0, 1, len(c) + 1), coverage(c)) for c in counts])
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(100 * x, 100 * curves.mean(axis=0), color=colour, label=f"{workload.name}, mean of the layers")
        low, high = 100 * curves.min(axis=0), 100 * curves.max(axis=0)
        axes.fill_between(100 * x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot((0, 100), (0, 100), color="0.5", linestyle=":", label="all experts used alike")
    axes.set_xlabel("most used experts, % of the layer's")
    axes.set_ylabel("routed (token, expert) pairs they take, %")
    axes.set_title("Coverage (band: least and most even layer)")
    _finish(axes)


def _draw_hit_rates(axes: "Axes", rates: HitRates, n_expert: int) -> None:
    for i, policy in enumerate(POLICIES):
        style = {OPTIMAL: "--", SEEDED: ":"}.get(policy, "-")
        colour = "black" if policy == OPTIMAL else _COLOURS[i % len(_COLOURS)]
        marker = _MARKERS[i % len(_MARKERS)]
        percent = [100 * rate for rate in rates.rates[policy]]
        # Each line is drawn thinner than the one before, so that lines on top of each other are all seen.
        slim = 1 - i / len(POLICIES)
        (line,) = axes.plot(rates.slots, percent, style, color=colour, marker=marker, label=policy)
        line.set_linewidth(1 + 2.8 * slim)
        line.set_markersize(3 + 5.5 * slim)
    axes.set_xlabel(f"expert slots a layer, of {n_expert} experts")
    axes.set_ylabel("hit rate, %")
    axes.set_title(f"Hit rate on {rates.workload}, last {rates.n_scored_tokens:,} tokens")
    axes.set_xlim(0, n_expert)
    _finish(axes)


def _finish(axes: "Axes") -> None:
    axes.set_ylim(0, 100)
    axes.grid(color="0.9")
    axes.legend(loc="lower right", fontsize="small")
