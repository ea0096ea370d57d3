"""A recorded pass for people: tables of 80 columns at most, a unit with every figure."""

import textwrap
from collections.abc import Sequence
from statistics import mean

from tabulate import tabulate

from moetune.engine.routing import RoutedLayer, WorkloadRouting
from moetune.engine.routing_analysis import COVERED_SHARES, STATIC_SHARE, TOP_SHARE, LayerUse, Overlap
from moetune.engine.routing_replay import OPTIMAL, POLICIES, SEEDED, HitRates
from moetune.engine.routing_report import RoutingReport

WIDTH = 80
_GAP = "–"
_MOST_SHAPES = 3
_USE_LEGEND = (
    "top 20% takes: share of the routed (token, expert) pairs that the most used fifth of the experts takes; "
    "50% by: so many experts take half of the pairs; entropy: of the expert chosen; reuse: distinct experts chosen "
    "since an expert was last chosen, itself included, median and 90th percentile"
)
_NAME_WIDTH = 14
_HIT_LEGEND = (
    "Each policy starts empty and is replayed over the whole text; the first half only warms it up. static: filled "
    f"once, with what came first; {SEEDED}: the most used experts of the first half, never changed; {OPTIMAL}: "
    "Belady's, which knows what comes"
)


def report_tables(report: RoutingReport) -> str:
    """One table a workload for its routing and one for its hit rates, and one for the overlaps, if there are any."""
    workloads = report.routing.workloads
    sections = [
        _use_section(report.routing.layers, workload, uses)
        for workload, uses in zip(workloads, report.uses, strict=True)
    ]
    sections.append(_wrapped(_USE_LEGEND))
    if report.overlaps:
        sections.append(_overlap_section(report.overlaps))
    sections += [_hit_section(rates, report.n_expert) for rates in report.hit_rates]
    sections.append(_wrapped(_HIT_LEGEND))
    return "\n\n".join(sections)


def _use_section(layers: Sequence[RoutedLayer], workload: WorkloadRouting, uses: Sequence[LayerUse]) -> str:
    shapes = sorted({(layer.n_used, layer.n_expert) for layer in layers})
    experts = " or ".join(f"{n_used} of {n_expert}" for n_used, n_expert in shapes[:_MOST_SHAPES])
    title = f"Routing of {workload.name}: {workload.n_tokens:,} tokens, {experts} experts each"
    headers = [
        "layer",
        f"top {TOP_SHARE:.0%}\ntakes",
        *(f"{share:.0%}\nby" for share in COVERED_SHARES),
        "entropy\nbits",
        "reuse\nmedian",
        "reuse\n90%",
    ]
    rows = [
        (
            str(use.layer),
            f"{use.top_share:.0%}",
            *(str(n) for n in use.covered_by),
            f"{use.entropy_bits:.2f}",
            _distance(use.reuse_median),
            _distance(use.reuse_p90),
        )
        for use in uses
    ]
    if len(uses) > 1:
        rows.append(_mean_row(uses))
    return f"{_wrapped(title)}\n{_table(headers, rows)}"


def _mean_row(uses: Sequence[LayerUse]) -> tuple[str, ...]:
    covered = [mean(of_share) for of_share in zip(*(use.covered_by for use in uses), strict=True)]
    medians = [use.reuse_median for use in uses if use.reuse_median is not None]
    p90s = [use.reuse_p90 for use in uses if use.reuse_p90 is not None]
    return (
        "mean",
        f"{mean(use.top_share for use in uses):.0%}",
        *(f"{n:.1f}" for n in covered),
        f"{mean(use.entropy_bits for use in uses):.2f}",
        f"{mean(medians):.1f}" if medians else _GAP,
        f"{mean(p90s):.1f}" if p90s else _GAP,
    )


def _overlap_section(overlaps: Sequence[Overlap]) -> str:
    quarter = f"{STATIC_SHARE:.0%}"
    title = _wrapped(
        f"Overlap of the most used {quarter} of the experts, mean over the layers: how many are the same, and how many "
        "of the second workload's choices they serve (hit rate), beside its own most used experts"
    )
    headers = ["the experts of", "on", "the same", "hit rate", "own hit rate"]
    rows = [(_cut(o.of), _cut(o.on), f"{o.shared:.0%}", f"{o.served:.1%}", f"{o.own:.1%}") for o in overlaps]
    return f"{title}\n{_table(headers, rows, n_text=2)}"


def _hit_section(rates: HitRates, n_expert: int) -> str:
    title = f"Hit rate on the last {rates.n_scored_tokens:,} tokens of {rates.workload}"
    headers = ["slots\na layer", "of the\nexperts", *POLICIES]
    rows = [
        (str(slots), f"{slots / n_expert:.0%}", *(f"{rates.rates[policy][i]:.1%}" for policy in POLICIES))
        for i, slots in enumerate(rates.slots)
    ]
    return f"{_wrapped(title)}\n{_table(headers, rows)}"


def _table(headers: Sequence[str], rows: Sequence[tuple[str, ...]], n_text: int = 0) -> str:
    aligned = ("left",) * n_text + ("right",) * (len(headers) - n_text)
    return tabulate(rows, headers=headers, colalign=aligned, disable_numparse=True)


def _distance(value: float | None) -> str:
    return _GAP if value is None else f"{value:.0f}"


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
