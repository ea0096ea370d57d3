"""What a model would do on a machine, before anything is run: memory by device, the best configurations, what binds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from moetune.autotune.baselines import ALL_ON_DEVICE, EXPERTS_IN_RAM, STOCK_CPU, offloads
from moetune.autotune.cost import CostModel, Prediction, cost_model
from moetune.autotune.cost_hits import HitCurve
from moetune.autotune.memory import MemoryModel, context_bytes, memory_of
from moetune.autotune.request import SearchRequest
from moetune.autotune.seeds import best
from moetune.autotune.space import Space, build_space
from moetune.autotune.trace import shape_for
from moetune.autotune.words import describe
from moetune.engine.config import KV_BITS_PER_VALUE, EngineConfig, KvType
from moetune.engine.model import Model
from moetune.hardware.machine import Machine

_BEST = 3
_LOOKED_AT = 12
# Closer than that the prediction cannot tell two configurations apart.
_APART = 1.005
OFFLOAD = "stock, layer offload"


@dataclass(frozen=True)
class Planned:
    """One configuration. name: what people call it, or "". fast_excess_bytes, host_excess_bytes: 0 or less fits."""

    name: str
    config: EngineConfig
    prediction: Prediction
    fast_excess_bytes: int
    host_excess_bytes: int


@dataclass(frozen=True)
class Share:
    """What one thing takes of each fast tier, by name, and of RAM, in bytes."""

    what: str
    fast_bytes: Mapping[str, int]
    host_bytes: int


@dataclass(frozen=True)
class Plan:
    """best: the fastest that fit, by prediction; usual: what people run without a tuner, fitting or not.

    shares: of the first of `best`, by what takes them; kv_bytes: of the whole context's KV cache, by type of K and V.
    """

    space: Space
    cost: CostModel
    machine: Machine
    n_ctx: int
    best: tuple[Planned, ...]
    usual: tuple[Planned, ...]
    shares: tuple[Share, ...]
    kv_bytes: dict[KvType, int]

    def to_dict(self) -> dict[str, Any]:
        """For programs: bytes, tok/s and seconds; shares and rates from 0 to 1."""
        tier = self.space.tier
        return {
            "model": {"name": self.space.model.name, "fingerprint": self.space.model.fingerprint},
            "machine": self.machine.label,
            "emulated": bool(tier and tier.emulated),
            "fast_tier": tier.name if tier else None,
            "fast_limit_bytes": self.cost.memory.fast_limit_bytes,
            "host_limit_bytes": self.cost.memory.host_limit_bytes,
            "context_tokens": self.n_ctx,
            "routing": self.cost.hits.source,
            "assumed": [asdict(assumption) for assumption in self.cost.figures.assumed],
            "kv_bytes": {str(kind): size for kind, size in self.kv_bytes.items()},
            "memory": [asdict(share) for share in self.shares],
            "best": [self._row(planned) for planned in self.best],
            "usual": [self._row(planned) for planned in self.usual],
        }

    def _row(self, planned: Planned) -> dict[str, Any]:
        seen = planned.prediction
        return {
            "name": planned.name,
            "configuration": describe(planned.config, self.space.model.n_layers),
            "pp_tps": seen.pp_tps,
            "tg_tps": seen.tg_tps,
            "turn_s": seen.turn_s,
            "hit_rate": seen.hit_rate,
            "fast_bytes": seen.fast_bytes,
            "host_bytes": seen.host_bytes,
            "fits": seen.fits,
            "fast_excess_bytes": planned.fast_excess_bytes,
            "host_excess_bytes": planned.host_excess_bytes,
            "bound": str(seen.bound),
            "reason": seen.reason,
            "waits": {str(resource): share for resource, share in seen.waits.items()},
            "with_twice_as_much": [
                {"of": str(r.resource), "turn_s": r.turn_s, "saved": r.saved} for r in seen.remedies
            ],
        }


def plan_for(request: SearchRequest, machine: Machine, model: Model, hits: HitCurve | None) -> Plan:
    """The plan for a request on a machine that need not be here. Raises MoetuneError (DEVICE, USAGE)."""
    memory = memory_of(model, machine, request.device)
    space = build_space(model, machine.cpu, memory, request)
    cost = cost_model(model, machine, memory, shape_for(request.workload, request.n_ctx), hits)
    found = _told_apart(_planned("", config, cost) for config in best(space, memory, cost, _LOOKED_AT))
    usual = tuple(_planned(name, config, cost) for name, config in _usual(space, cost))
    shown = found[0].config if found else usual[0].config
    return Plan(
        space=space,
        cost=cost,
        machine=machine,
        n_ctx=request.n_ctx,
        best=tuple(found),
        usual=usual,
        shares=tuple(_shares(shown, memory)),
        kv_bytes={kind: _kv_bytes(shown, kind, model) for kind in KV_BITS_PER_VALUE},
    )


def _told_apart(candidates: Iterable[Planned]) -> list[Planned]:
    """The fastest few, of those predicted alike the first."""
    found: list[Planned] = []
    for planned in sorted(candidates, key=lambda candidate: candidate.prediction.turn_s):
        if not found or planned.prediction.turn_s > _APART * found[-1].prediction.turn_s:
            found.append(planned)
    return found[:_BEST]


def _planned(name: str, config: EngineConfig, cost: CostModel) -> Planned:
    return Planned(name, config, cost.predict(config), *cost.memory.excess_bytes(config))


def _usual(space: Space, cost: CostModel) -> Iterator[tuple[str, EngineConfig]]:
    default, model = space.default, space.model
    if space.tier is not None and not space.tier.on_host:
        yield ALL_ON_DEVICE, replace(default, gpu_layers=model.n_layers + 1, ram_expert_layers=0)
        in_ram = replace(default, ram_expert_layers=model.n_layers)
        offload = min(_offloads(space, cost.memory), key=cost.turn_s, default=None)
        if offload is not None and offload != in_ram:
            yield OFFLOAD, offload
        if model.is_moe:
            yield EXPERTS_IN_RAM, in_ram
    yield STOCK_CPU, default.on_cpu


def _offloads(space: Space, memory: MemoryModel) -> Iterator[EngineConfig]:
    """The most layers that fit, with the default micro-batch and with smaller ones, which leave more room."""
    sizes = [int(n) for n in space.choices("n_ubatch") if int(n) < space.default.n_ubatch]
    for n_ubatch in (space.default.n_ubatch, *sizes):
        placements = (replace(config, n_ubatch=n_ubatch) for config in offloads(space))
        yield from islice((config for config in placements if memory.fits_fast(config)), 1)


def _shares(config: EngineConfig, memory: MemoryModel) -> Iterator[Share]:
    model, footprint = memory.model, memory.footprint(config)
    weights, kv = memory.placed_bytes(config)
    slots = memory.slots_of(config) * memory.slot_bytes(replace(config, cache=None))
    on_host = memory.tier is not None and memory.tier.on_host
    fast_slots = [0 if on_host else slots, *(0 for _ in config.more_devices)]
    used = [0 if on_host else footprint.fast_bytes, *footprint.more_bytes]
    buffers = [max(0, all_ - sum(parts)) for all_, *parts in zip(used, weights, kv, fast_slots, strict=True)]
    host_weights = model.tensor_bytes - min(sum(weights), model.tensor_bytes)
    host_kv = sum(context_bytes(config, layer) for layer in model.layers) - sum(kv)
    host_slots = slots if on_host else 0

    def share(what: str, fast: Sequence[int], host_bytes: int) -> Share:
        held = dict(zip((config.device, *config.more_devices), fast, strict=True))
        return Share(what, {tier.name: held.get(tier.name, 0) for tier in memory.tiers}, max(0, host_bytes))

    yield share("weights", weights, host_weights)
    yield share("KV cache and state", kv, host_kv)
    if config.cache is not None:
        yield share(f"expert slots, {memory.slots_of(config)} a layer", fast_slots, host_slots)
    rest = footprint.host_bytes - host_weights - host_kv - host_slots
    yield share("compute buffers, process", buffers, rest)
    yield share("in all", used, footprint.host_bytes)


def _kv_bytes(config: EngineConfig, kind: KvType, model: Model) -> int:
    typed = replace(config, type_k=kind, type_v=kind)
    return sum(context_bytes(typed, layer) for layer in model.layers)
