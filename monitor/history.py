"""What happened between samples: speeds and rates, over the last seconds and as a line over the last minute."""

from collections import deque
from dataclasses import dataclass, field

from moetune.engine.activity import Activity, LayerActivity

# Rates are those of so many seconds: a token every now and then is still a speed.
_WINDOW_S = 2.0
_KEPT = 600


@dataclass(frozen=True)
class Rates:
    """Of the last seconds. hit_rate: None where nothing was routed."""

    prompt_tps: float
    reply_tps: float
    hit_rate: float | None
    promotions_s: float
    link_bytes_s: float


@dataclass
class History:
    """The samples of the last seconds, and the rates at each of the last samples.

    Samples are large (a number for every expert), so no more are kept than rates are made from.
    """

    samples: deque[Activity] = field(default_factory=deque)
    line: deque[Rates] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, sample: Activity) -> None:
        """The next one; those of another model, or from before the clock was set back, begin anew."""
        if self.samples and (sample.model != self.now.model or sample.at_s < self.now.at_s):
            self.samples.clear()
            self.line.clear()
        self.samples.append(sample)
        while len(self.samples) > 2 and self.samples[1].at_s <= sample.at_s - _WINDOW_S:
            self.samples.popleft()
        self.line.append(_between(self.samples[0], sample))

    @property
    def now(self) -> Activity:
        """The last sample."""
        return self.samples[-1]

    @property
    def rates(self) -> Rates:
        """Of the last two seconds, or of what there is."""
        return self.line[-1]

    def layer_hit_rates(self) -> dict[int, float | None]:
        """Of each layer, in the same window."""
        before = {layer.layer: layer for layer in self.samples[0].layers}
        return {layer.layer: _hit_rate([_since(layer, before.get(layer.layer))]) for layer in self.now.layers}


@dataclass(frozen=True)
class _Gained:
    hits: int
    misses: int
    promotions: int
    bytes_moved: int


def _between(before: Activity, now: Activity) -> Rates:
    known = {layer.layer: layer for layer in before.layers}
    gained = [_since(layer, known.get(layer.layer)) for layer in now.layers]
    seconds = max(now.at_s - before.at_s, 1e-3)
    return Rates(
        prompt_tps=max(0, now.prompt_tokens - before.prompt_tokens) / seconds,
        reply_tps=max(0, now.reply_tokens - before.reply_tokens) / seconds,
        hit_rate=_hit_rate(gained),
        promotions_s=sum(g.promotions for g in gained) / seconds,
        link_bytes_s=sum(g.bytes_moved for g in gained) / seconds,
    )


def _since(layer: LayerActivity, before: LayerActivity | None) -> _Gained:
    """Counters begin at zero again with every answer: then all they say is new."""
    if before is None or layer.hits + layer.misses < before.hits + before.misses:
        return _Gained(layer.hits, layer.misses, layer.promotions, layer.bytes_moved)
    return _Gained(
        layer.hits - before.hits,
        layer.misses - before.misses,
        max(0, layer.promotions - before.promotions),
        max(0, layer.bytes_moved - before.bytes_moved),
    )


def _hit_rate(gained: list[_Gained]) -> float | None:
    hits, pairs = sum(g.hits for g in gained), sum(g.hits + g.misses for g in gained)
    return hits / pairs if pairs else None
