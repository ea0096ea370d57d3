"""What quantised KV caches cost in quality: KLD against the bits a value takes."""

from collections.abc import Iterable

from moetune.autotune.quality import LIMITS, QualityFigures
from moetune.autotune.quality_store import QualityKey
from moetune.autotune.report.chart import Axis, Chart, Guide, Point, Series
from moetune.engine.config import KV_BITS_PER_VALUE, KvType
from moetune.engine.divergence import Divergence

_NORMAL_95 = 1.96
_BESIDE = 0.12

Known = Iterable[tuple[QualityKey, QualityFigures]]


def quality_chart(known: Known) -> Chart:
    """Every pair of types whose figures are kept for this model, in chunks and at depth."""
    series: dict[str, list[Point]] = {"in chunks": [], "at depth": [], "noise floor": []}
    for key, figures in known:
        scored = {"in chunks": figures.in_chunks, "at depth": figures.at_depth}
        for name, found in scored.items():
            if found is not None and found.mean > 0:
                is_floor = (key.type_k, key.type_v) == (KvType.F16, KvType.F16)
                series["noise floor" if is_floor else name].append(_point(key, found, name))
    return Chart(
        key="quality",
        title="KLD against bits of the KV cache",
        caption="Mean KL divergence of the next token's distribution from that with an f16 KV cache, on the same text, "
        "with its 95 % interval; lower is closer to f16. The dashed lines are what --quality allows. The noise floor "
        "is f16 against f16 with another micro-batch. A KLD of zero has no place on this axis.",
        x=Axis("bits a value, mean of K and V", limits=(4.0, 17.5)),
        y=Axis("mean KLD, nats a token", log=True),
        series=tuple(Series(name, tuple(points)) for name, points in series.items() if points),
        guides=tuple(Guide(limits.mean_kld, str(level)) for level, limits in LIMITS.items()),
        empty="" if any(points for name, points in series.items() if name != "noise floor") else _NOTHING,
    )


_NOTHING = (
    "No quantised KV cache was scored for this model: none came near the lead, or none was allowed to compete (--kv), "
    "or any quality would do (--quality any)."
)


def _point(key: QualityKey, found: Divergence, where: str) -> Point:
    bits = (KV_BITS_PER_VALUE[key.type_k] + KV_BITS_PER_VALUE[key.type_v]) / 2
    half = _NORMAL_95 * found.mean_error
    types = str(key.type_k) if key.type_k == key.type_v else f"K {key.type_k}, V {key.type_v}"
    label = f"{types} {where}; same top token {found.top1:.1%}"
    # The lower bound may be below zero, where a logarithmic axis ends.
    spread = (max(found.mean - half, found.mean / 10), found.mean + half)
    # Side by side, or one would hide the other.
    beside, tag = (0.0, types) if where == "in chunks" else (_BESIDE, "")
    return Point(bits + beside, found.mean, label, spread, tag=tag)
