"""Small recorded passes, made by hand or at random."""

import numpy as np

from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting

FINGERPRINT = "0123456789abcdef" * 2


def random_routing(
    layers: tuple[RoutedLayer, ...], tokens: dict[str, int], seed: int = 0, skew: float = 1.5
) -> Routing:
    """Distinct experts for each token, some chosen more often than others; a few stay with the next token."""
    rng = np.random.default_rng(seed)
    workloads = []
    for name, n_tokens in tokens.items():
        ids = []
        for layer in layers:
            weights = rng.permutation(1.0 / (1 + np.arange(layer.n_expert)) ** skew)
            rows = [
                rng.choice(layer.n_expert, layer.n_used, replace=False, p=weights / weights.sum())
                for _ in range(n_tokens)
            ]
            ids.append(np.array(rows).astype(layer.id_type))
        workloads.append(WorkloadRouting(name, tuple(ids)))
    return Routing(FINGERPRINT, layers, tuple(workloads))


def same(a: Routing, b: Routing) -> bool:
    """Whether two passes are equal, ids and their types included."""
    return (
        (a.model_fingerprint, a.layers) == (b.model_fingerprint, b.layers)
        and [w.name for w in a.workloads] == [w.name for w in b.workloads]
        and all(
            x.dtype == y.dtype and np.array_equal(x, y)
            for v, w in zip(a.workloads, b.workloads, strict=True)
            for x, y in zip(v.ids, w.ids, strict=True)
        )
    )
