"""All that is said about one recorded pass, as one value that tables, the figure and JSON are made from."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moetune.engine.routing import Routing
from moetune.engine.routing_analysis import COVERED_SHARES, LayerUse, Overlap, layer_uses, overlaps
from moetune.engine.routing_replay import HitRates, hit_rates

# Of the experts of a layer: where cards with room for few experts differ most, the steps are smaller.
_SLOT_SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)


@dataclass(frozen=True)
class RoutingReport:
    """uses, hit_rates: by workload, in the pass's order; uses by layer within that. overlaps: of every ordered pair."""

    routing: Routing
    uses: tuple[tuple[LayerUse, ...], ...]
    overlaps: tuple[Overlap, ...]
    hit_rates: tuple[HitRates, ...]

    @property
    def n_expert(self) -> int:
        """Experts of the layer that has most."""
        return max(layer.n_expert for layer in self.routing.layers)

    def to_dict(self) -> dict[str, Any]:
        """For programs: everything but the ids. Shares and hit rates are from 0 to 1, distances in experts."""
        routing = self.routing
        return {
            "model_fingerprint": routing.model_fingerprint,
            "layers": [asdict(layer) for layer in routing.layers],
            "workloads": [
                {
                    "name": workload.name,
                    "n_tokens": workload.n_tokens,
                    "covered_shares": COVERED_SHARES,
                    "layers": [asdict(use) for use in uses],
                    "hit_rates": asdict(rates),
                }
                for workload, uses, rates in zip(routing.workloads, self.uses, self.hit_rates, strict=True)
            ],
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
        }


def slot_counts(routing: Routing) -> tuple[int, ...]:
    """Slots a layer worth looking at, from a sixteenth to seven eighths of the experts."""
    n_expert = max(layer.n_expert for layer in routing.layers)
    return tuple(sorted({max(1, round(share * n_expert)) for share in _SLOT_SHARES}))


def n_steps(routing: Routing) -> int:
    """How often `report_on` reports progress."""
    return 2 * len(routing.layers) * len(routing.workloads)


def report_on(
    routing: Routing, slots: Sequence[int], settings: Sequence[str], done: Callable[[], None]
) -> RoutingReport:
    """Analyse and replay the whole pass; `done` hears of every step. Raises as `hit_rates` does."""
    return RoutingReport(
        routing,
        uses=tuple(layer_uses(routing, workload, done) for workload in routing.workloads),
        overlaps=overlaps(routing),
        hit_rates=tuple(hit_rates(routing.layers, workload, slots, settings, done) for workload in routing.workloads),
    )
