"""How a text becomes batches: every token once, in order, and never more than the engine takes."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetune.engine.config import EngineConfig
from moetune.engine.routing import RoutedBatch, RoutedLayer
from moetune.engine.routing_pass import WorkloadTokens, record
from moetune.errors import MoetuneError

LAYERS = (RoutedLayer(0, 200, 2), RoutedLayer(4, 1000, 1))


@dataclass
class Echo:
    """Stands for the engine: routes token t to the experts t, t + 1 in the first layer and 3 t in the second."""

    layers: tuple[RoutedLayer, ...] = LAYERS
    asked: list[tuple[bool, int]] = field(default_factory=list)

    def route(self, config: EngineConfig, tokens: tuple[int, ...], *, begins: bool, time_limit_s: float) -> RoutedBatch:
        self.asked.append((begins, len(tokens)))
        array = np.array(tokens)
        ids = (np.stack([array, array + 1], axis=1), 3 * array)
        raw = b"".join(i.astype(layer.id_type).tobytes() for i, layer in zip(ids, self.layers, strict=True))
        return RoutedBatch(self.layers, len(tokens), raw)


@given(st.integers(1, 400), st.integers(2, 90), st.integers(2, 40))
def test_every_token_comes_once_and_in_order(n_tokens: int, n_ctx: int, n_ubatch: int) -> None:
    """Sequences leave a position for BOS, batches fit the engine, and ids of narrow and wide layers line up."""
    tokens = tuple(int(t) for t in np.random.default_rng(n_tokens).integers(0, 199, n_tokens))
    engine, heard = Echo(), []
    config = EngineConfig(n_ctx=n_ctx, n_threads=1, n_ubatch=n_ubatch)
    routing = record(engine, config, "0" * 32, (WorkloadTokens("w", tokens),), heard.append)  # type: ignore[arg-type]
    narrow, wide = routing.workloads[0].ids
    assert narrow.tolist() == [[t, t + 1] for t in tokens]
    assert wide.tolist() == [[3 * t] for t in tokens]
    assert sum(heard) == n_tokens
    position = 0
    for begins, n_batch in engine.asked:
        position = 1 + n_batch if begins else position + n_batch
        assert n_batch + begins <= n_ubatch
        assert position <= n_ctx


def test_workloads_are_recorded_apart() -> None:
    """Each begins a sequence of its own, and keeps its name and place."""
    engine = Echo()
    config = EngineConfig(n_ctx=64, n_threads=1)
    texts = (WorkloadTokens("a", (1, 2, 3)), WorkloadTokens("b", (7, 8)))
    routing = record(engine, config, "0" * 32, texts, lambda _: None)  # type: ignore[arg-type]
    assert [(w.name, w.ids[1].ravel().tolist()) for w in routing.workloads] == [("a", [3, 6, 9]), ("b", [21, 24])]
    assert engine.asked == [(True, 3), (True, 2)]


def test_layers_that_change_are_an_error() -> None:
    """A recording whose batches do not belong together is not made."""

    class Fickle(Echo):
        def route(self, *args: object, **flags: object) -> RoutedBatch:
            batch = super().route(*args, **flags)  # type: ignore[arg-type]
            self.layers = (LAYERS[0], RoutedLayer(5, 1000, 1))
            return batch

    config = EngineConfig(n_ctx=4, n_threads=1)
    with pytest.raises(MoetuneError, match="from batch to batch"):
        record(Fickle(), config, "0" * 32, (WorkloadTokens("w", tuple(range(9))),), lambda _: None)  # type: ignore[arg-type]
