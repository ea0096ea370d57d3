"""What a recorded pass says: how uneven routing is, how soon experts come back, how alike workloads are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from moetune.engine.routing import Counts, Ids, Routing, WorkloadRouting

# "The most used experts": a fifth is what people quote of a model, a quarter what a fast tier typically holds.
TOP_SHARE = 0.20
STATIC_SHARE = 0.25
COVERED_SHARES = (0.50, 0.80, 0.95)


@dataclass(frozen=True)
class LayerUse:
    """One layer's routing in one workload.

    covered_by: experts it takes, most used first, for each of `COVERED_SHARES` of the routed pairs. top_share: what the
    most used fifth of the experts takes, 0.2 when all are used alike. entropy_bits: of the expert chosen, at most
    log2(n_expert). reuse_median, reuse_p90: distinct experts chosen since this one last was, itself included; an LRU of
    so many slots just holds it. None when no expert came twice.
    """

    layer: int
    counts: tuple[int, ...]
    top_share: float
    covered_by: tuple[int, ...]
    entropy_bits: float
    reuse_median: float | None
    reuse_p90: float | None


@dataclass(frozen=True)
class Overlap:
    """How far one workload's experts serve another; means over the layers, each from 0 to 1.

    shared: of the most used quarter of the experts, the part that is the same in both, 0.25 by chance.
    served: the hit rate of `of`'s most used quarter on `on`; own: that of `on`'s own quarter, the most there can be.
    """

    of: str
    on: str
    shared: float
    served: float
    own: float


def layer_uses(routing: Routing, workload: WorkloadRouting, done: Callable[[], None]) -> tuple[LayerUse, ...]:
    """Every layer's use in one of the pass's workloads; `done` hears of each layer."""
    all_counts = routing.counts[routing.workloads.index(workload)]
    uses = []
    for layer, ids, counts in zip(routing.layers, workload.ids, all_counts, strict=True):
        distances = reuse_distances(ids, layer.n_expert)
        median, p90 = np.percentile(distances, (50, 90)) if len(distances) else (None, None)
        uses.append(
            LayerUse(
                layer=layer.index,
                counts=tuple(counts.tolist()),
                top_share=share_of_top(counts, TOP_SHARE),
                covered_by=tuple(experts_for(counts, share) for share in COVERED_SHARES),
                entropy_bits=entropy_bits(counts),
                reuse_median=None if median is None else float(median),
                reuse_p90=None if p90 is None else float(p90),
            )
        )
        done()
    return tuple(uses)


def overlaps(routing: Routing) -> tuple[Overlap, ...]:
    """Every ordered pair of different workloads."""
    by_name = {workload.name: counts for workload, counts in zip(routing.workloads, routing.counts, strict=True)}
    return tuple(
        Overlap(
            of,
            on,
            shared=_mean(shared_top(a, b, _quarter(a)) for a, b in zip(by_name[of], by_name[on], strict=True)),
            served=_mean(static_hit_rate(a, b, _quarter(a)) for a, b in zip(by_name[of], by_name[on], strict=True)),
            own=_mean(static_hit_rate(b, b, _quarter(b)) for b in by_name[on]),
        )
        for of, on in permutations(by_name, 2)
    )


def coverage(counts: Counts) -> NDArray[np.float64]:
    """Share of all choices that the k most used experts take, for k from 0 to n_expert: [n_expert + 1]."""
    taken = np.concatenate(([0.0], np.cumsum(np.sort(counts)[::-1])))
    return np.asarray(taken / max(taken[-1], 1))


def share_of_top(counts: Counts, share: float) -> float:
    """What the most used `share` of the experts takes; between two whole numbers of experts, in proportion."""
    return float(np.interp(share * len(counts), np.arange(len(counts) + 1), coverage(counts)))


def experts_for(counts: Counts, share: float) -> int:
    """How many experts, most used first, take at least `share` of the choices."""
    return int(np.searchsorted(coverage(counts), share - 1e-12))


def entropy_bits(counts: Counts) -> float:
    """Of the distribution that the counts are a sample of, without correction for the sample's size."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def top_experts(counts: Counts, n: int) -> NDArray[np.int64]:
    """The n most used experts, the lower number first where two are used alike."""
    return np.argsort(-counts, kind="stable")[:n].astype(np.int64)


def shared_top(a: Counts, b: Counts, n: int) -> float:
    """Part of the n most used experts that `a` and `b` have in common."""
    return len(np.intersect1d(top_experts(a, n), top_experts(b, n))) / n


def static_hit_rate(filled_from: Counts, served: Counts, n_slots: int) -> float:
    """Share of the choices in `served` that the n_slots most used experts of `filled_from` would have hit.

    Slots stay empty where `filled_from` used fewer experts than that.
    """
    held = [expert for expert in top_experts(filled_from, n_slots) if filled_from[expert]]
    return float(served[held].sum() / max(served.sum(), 1))


def reuse_distances(ids: Ids, n_expert: int) -> NDArray[np.int64]:
    """LRU stack distances of all choices whose expert was chosen before, in order.

    Choices are taken one after the other as they stand in `ids`. The distance is the number of distinct experts chosen
    since the expert's last time, itself included: an LRU of n slots hits exactly the choices with a distance <= n.
    """
    last_at = np.full(n_expert, -1, np.int64)
    distances = []
    for at, expert in enumerate(ids.ravel().tolist()):
        if last_at[expert] >= 0:
            distances.append(np.count_nonzero(last_at >= last_at[expert]))
        last_at[expert] = at
    return np.array(distances, np.int64)


def _quarter(counts: Counts) -> int:
    return max(1, round(STATIC_SHARE * len(counts)))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
