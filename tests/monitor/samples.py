"""Samples of an engine that answers, made by hand."""

from dataclasses import replace

from moetune.engine.activity import Activity, DeviceMemory, KvRow, LayerActivity

GIB = 1 << 30


def layer(index: int, at: int, n_experts: int = 32) -> LayerActivity:
    """After `at` tokens: expert `index` is the hottest, its neighbours fade; the first eight are in slots."""
    heat = tuple(max(0.0, 8.0 - abs(expert - index)) for expert in range(n_experts))
    return LayerActivity(index, 8, 3 * at, at, at // 2, at * 1_000_000, True, heat, tuple(range(8)))


def sample(at: int, *, n_layers: int = 4, n_experts: int = 32) -> Activity:
    """A quarter of a second and ten tokens after the one before."""
    return Activity(
        model="Some MoE 30B-A3B",
        emulated=False,
        at_s=1_000_000 + at / 4,
        prompt_tokens=512,
        reply_tokens=10 * at,
        kv=(KvRow(512 + 10 * at, 4096, True),),
        rss_bytes=3 * GIB,
        devices=(DeviceMemory("CUDA0", 20 * GIB, 24 * GIB),),
        layers=tuple(layer(i, 10 * at, n_experts) for i in range(n_layers)),
    )


def restarted(at: int) -> Activity:
    """The same engine after its counters went back to zero with a new answer."""
    return replace(sample(at), layers=tuple(layer(i, 10) for i in range(4)))
