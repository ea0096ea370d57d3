"""The static search space of one model on one machine, and the way between its parameters and configurations.

The slots are a share of the memory that everything else and the reserve leave free, so that every point of the space is
one that fits or is known not to. A knob that changes nothing on this machine or model is not in the space at all; one
that changes nothing at some point is at its default there, so that equal configurations are equal.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution

from moetune.autotune.dimensions import CACHE, ON_CPU, STOCK, dimensions
from moetune.autotune.knobs import (
    RESERVES,
    SLOT_PERCENTS,
    UBATCHES,
    Choice,
    Knob,
    Of,
    default_threads,
    kv_choices,
    quantised,
    ubatch_choices,
)
from moetune.autotune.memory import MIB, MemoryModel
from moetune.autotune.request import SearchRequest
from moetune.autotune.split import main_percents, spread_layers, with_layers
from moetune.autotune.tier import FastTier
from moetune.engine.config import CacheKnobs, EngineConfig, FlashAttention, KvType, Policy, Spread
from moetune.engine.model import Model
from moetune.hardware.machine import Cpu

SPACE_VERSION = 2
Params = Mapping[str, Choice]
# How far below the predicted limit placements stay in the space, in case the prediction was too careful.
_BEYOND_PREDICTION = 2
_OFF = CacheKnobs(slots=0)


@dataclass(frozen=True)
class Space:
    """The knobs, and what they leave fixed.

    default: stock llama.cpp with default knobs, the devices given and its layers placed as the knobs below vary it.
    cache_idle: why the cache takes no part, None where it does. fits_whole: the fast tiers hold the whole model.
    routing: the recorded routing that seeds slots and orders them, where there is one.
    """

    model: Model
    tiers: tuple[FastTier, ...]
    default: EngineConfig
    knobs: tuple[Knob, ...]
    cache_idle: str | None
    fits_whole: bool
    routing: str | None = None
    routing_digest: str | None = None

    @property
    def tier(self) -> FastTier | None:
        """The first of the fast tiers."""
        return next(iter(self.tiers), None)

    @property
    def has_cache(self) -> bool:
        return self.cache_idle is None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {knob.name: knob.distribution for knob in self.knobs}

    @property
    def digest(self) -> str:
        """Changes whenever the meaning of stored parameters does."""
        knobs = [[knob.name, knob.choices, knob.ordered] for knob in self.knobs]
        types = [self.default.type_k, self.default.type_v]
        described = [SPACE_VERSION, knobs, types, self.default.device, self.default.more_devices, self.routing_digest]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]

    def choices(self, name: str) -> tuple[Choice, ...]:
        """The choices of a knob; empty when it is not in this space."""
        return next((knob.choices for knob in self.knobs if knob.name == name), ())

    def config_of(self, params: Params, memory: MemoryModel) -> EngineConfig:
        """The configuration a point of the space stands for, in canonical form."""
        chosen = {knob.name: knob.decode(params[knob.name]) for knob in self.knobs}
        fields = self._fields(Of.CONFIG, chosen)
        if "type_kv" in chosen:
            fields["type_k"] = fields["type_v"] = KvType(str(chosen["type_kv"]))
        stock = replace(self.default, **fields)
        if "main_percent" in chosen:
            stock = spread_layers(stock, memory.tiers, self.model.n_layers, float(chosen["main_percent"]))
        if chosen.get("engine") == CACHE:
            return self._cached(_canonical(stock), chosen, memory)
        if chosen.get("engine") == ON_CPU:
            stock = stock.on_cpu
        return _canonical(_packed(stock, bool(chosen["repack"])) if "repack" in chosen else stock)

    def _fields(self, of: Of, chosen: dict[str, Choice]) -> dict[str, Any]:
        return {knob.name: knob.kind(chosen[knob.name]) for knob in self.knobs if knob.of is of}

    def _cached(self, stock: EngineConfig, chosen: dict[str, Choice], memory: MemoryModel) -> EngineConfig:
        bare = cache_off(stock, self.tier)
        tier = memory.tier_of(bare.device)
        reserve = float(chosen.get("reserve", 1.0))
        knobs = replace(
            _OFF,
            **self._fields(Of.CACHE, chosen),
            repack=bool(chosen.get("repack", False)),
            reserve_bytes=int(tier.reserve_bytes * reserve) if tier is not None and reserve != 1.0 else None,
            routing=self.routing,
        )
        knobs = _canonical_cache(knobs)
        slots = _with_slots(replace(bare, cache=knobs), int(chosen["slots_percent"]), memory)
        return slots if slots.has_slots else bare

    def params_of(self, config: EngineConfig, memory: MemoryModel) -> dict[str, Choice]:
        """The point of the space nearest to a configuration; exact for what `config_of` returned."""
        cache = config.cache if config.cache is not None and config.cache.on else _OFF
        if config.device is None and self.default.device is not None:
            # Its experts lie where they all lie in RAM.
            config = replace(config, ram_expert_layers=self.default.ram_expert_layers)
        found: dict[str, Choice] = {}
        for knob in self.knobs:
            if knob.of is Of.SPACE:
                value = _WORKED_OUT[knob.name](config, memory)
            elif knob.name == "n_threads_batch":
                value = config.batch_threads
            else:
                value = getattr(cache if knob.of is Of.CACHE else config, knob.name)
            found[knob.name] = knob.encode(str(value) if isinstance(value, str) else value)
        return found


def cache_off(stock: EngineConfig, tier: FastTier | None) -> EngineConfig:
    """The same placement with the plugin loaded and no slots; its weights cannot use the repacked layout."""
    device = stock.device if stock.device is not None else tier.name if tier is not None else None
    return replace(stock, device=device, cache=_OFF, repack=False, no_host=False)


def _canonical(config: EngineConfig) -> EngineConfig:
    """Everything that changes nothing here at its default."""
    changed: dict[str, Any] = {}
    if config.n_threads_batch == config.n_threads:
        changed["n_threads_batch"] = None
    if quantised(config.type_v):
        # llama.cpp turns it on for these, and refuses to do without.
        changed["flash_attn"] = FlashAttention.AUTO
    if config.gpu_layers == 0 and config.more_devices:
        changed |= {"more_devices": (), "tensor_split": ()}
    return replace(config, **changed) if changed else config


def _canonical_cache(knobs: CacheKnobs) -> CacheKnobs:
    if knobs.policy is not Policy.STATIC:
        return knobs
    # Nothing is ever promoted once the slots are full.
    kept = {name: getattr(_OFF, name) for name in ("interval_tokens", "hysteresis", "promotions")}
    return replace(knobs, **kept)


def _packed(stock: EngineConfig, packed: bool) -> EngineConfig:
    """Weights in RAM in the CPU's packed layout, or in memory that a device copies from; see `EngineConfig.repack`."""
    return replace(stock, repack=packed) if stock.device is None else replace(stock, no_host=packed)


def _is_packed(stock: EngineConfig) -> bool:
    return stock.repack if stock.device is None else stock.no_host


def _with_slots(bare: EngineConfig, percent: int, memory: MemoryModel) -> EngineConfig:
    """As many slots a layer as `percent` of the room holds, or the same bytes to be spread unevenly."""
    knobs = bare.cache or _OFF
    amount = memory.slot_room(bare) * percent // 100
    slots = amount // max(1, memory.slot_bytes(bare))
    if slots and knobs.spread is Spread.COVERAGE:
        return replace(bare, cache=replace(knobs, budget_bytes=amount))
    return replace(bare, cache=replace(knobs, slots=slots))


def _percent_of(config: EngineConfig, memory: MemoryModel) -> int:
    knobs = config.cache
    if knobs is None or not knobs.on:
        return 0
    bare = replace(config, cache=replace(knobs, slots=0, budget_bytes=0))
    room = memory.slot_room(bare)
    one = memory.slot_bytes(bare) if knobs.slots else 1
    return min(
        SLOT_PERCENTS, key=lambda p: (abs(room * p // 100 // max(1, one) - (knobs.slots or knobs.budget_bytes)), p)
    )


def _reserve_of(config: EngineConfig, memory: MemoryModel) -> float:
    tier, reserve_bytes = memory.tier_of(config.device), config.cache.reserve_bytes if config.cache else None
    if tier is None or reserve_bytes is None:
        return 1.0
    return min(RESERVES, key=lambda share: abs(share * tier.reserve_bytes - reserve_bytes))


def _main_percent_of(config: EngineConfig, memory: MemoryModel) -> float:
    if not config.more_devices:
        return 100.0
    of_main = config.tensor_split[0] / max(1, sum(config.tensor_split)) if config.tensor_split else 0.0

    def distance(percent: float) -> tuple[float, float]:
        split = spread_layers(config, memory.tiers, memory.model.n_layers, percent).tensor_split
        return abs((split[0] / sum(split) if split else 1.0) - of_main), percent

    return min(main_percents(memory.tiers), key=distance)


def _repack_of(config: EngineConfig, memory: MemoryModel) -> bool:
    return config.cache.repack if config.cache is not None else _is_packed(config)


def _engine_of(config: EngineConfig, memory: MemoryModel) -> str:
    if config.cache is not None:
        return CACHE
    tier = memory.tier
    return ON_CPU if config.device is None and tier is not None and not tier.on_host else STOCK


_WORKED_OUT: dict[str, Callable[[EngineConfig, MemoryModel], Choice]] = {
    "type_kv": lambda config, memory: str(config.type_k),
    "engine": _engine_of,
    "repack": _repack_of,
    "slots_percent": _percent_of,
    "reserve": _reserve_of,
    "main_percent": _main_percent_of,
}


def build_space(model: Model, cpu: Cpu, memory: MemoryModel, request: SearchRequest) -> Space:
    """The space of this model on this machine; reads only what is the same tomorrow (total, not free, memory)."""
    tier, idle = memory.tier, memory.idle()
    default = _default(model, cpu, request, tier)
    placement: list[Knob] = []
    if tier is not None and not tier.on_host:
        default, placement = _placement(model, default, idle)
    whole = replace(default, gpu_layers=model.n_layers + 1, ram_expert_layers=0)
    fits_whole = bool(placement) and _fits_somehow(whole, idle)
    cache_idle = _why_cache_is_idle(model, default, idle, fits_whole)
    routing = request.routing if cache_idle is None else None
    # Where layers are left in RAM, a weak device may cost more than it gives.
    engines = [STOCK, *([CACHE] if cache_idle is None else []), *([ON_CPU] if placement and not fits_whole else [])]
    knobs = dimensions(model, cpu, memory, request, placement, tuple(engines))
    return Space(
        model=model,
        tiers=memory.tiers,
        default=default,
        knobs=_restricted(knobs, dict(request.choices)),
        cache_idle=cache_idle,
        fits_whole=fits_whole,
        routing=str(routing) if routing is not None else None,
        routing_digest=hashlib.sha256(routing.read_bytes()).hexdigest() if routing is not None else None,
    )


def _restricted(knobs: list[Knob], allowed: dict[str, tuple[Choice, ...]]) -> tuple[Knob, ...]:
    """Without knobs that have nothing to choose; one that is restricted to a single choice keeps it."""
    kept = [replace(k, choices=tuple(c for c in k.choices if c in allowed.get(k.name, k.choices))) for k in knobs]
    return tuple(knob for knob in kept if len(knob.choices) > 1 or knob.name in allowed)


def _default(model: Model, cpu: Cpu, request: SearchRequest, tier: FastTier | None) -> EngineConfig:
    of_k, of_v = kv_choices(model, request.kv_types), kv_choices(model, request.kv_types, of_v=True)
    sizes = ubatch_choices(request.n_ctx, request.workload.prompt_tokens)
    allowed = dict(request.choices).get("n_ubatch", sizes)
    ubatches = [size for size in sizes if size in allowed]
    same = model.is_mla and of_v[0]
    return EngineConfig(
        n_ctx=request.n_ctx,
        n_threads=default_threads(cpu, emulated=tier is not None and tier.emulated),
        n_ubatch=512 if 512 in ubatches else ubatches[-1],
        type_k=KvType.F16 if KvType.F16 in of_k else same or of_k[0],
        type_v=KvType.F16 if KvType.F16 in of_v else of_v[0],
        # Stock llama.cpp on the CPU names no device even where the CPU plays the cache's fast tier.
        device=tier.name if tier is not None and not tier.on_host else None,
    )


def _placement(model: Model, default: EngineConfig, idle: MemoryModel) -> tuple[EngineConfig, list[Knob]]:
    """All dense parts on devices and experts by layer where that fits; whole layers from the back otherwise."""
    every = model.n_layers + 1
    spread = with_layers(default, every, idle.tiers, model.n_layers)
    dense_on_device = _with_fitting_batch(replace(spread, ram_expert_layers=model.n_layers), idle)
    if model.is_moe and idle.fits_fast(dense_on_device):
        values = sorted({0, *(index + 1 for index in model.moe_layers[:-1]), model.n_layers})
        fitting = [v for v in values if _fits_somehow(replace(dense_on_device, ram_expert_layers=v), idle)]
        least = max(0, values.index(fitting[0] if fitting else values[-1]) - _BEYOND_PREDICTION)
        return dense_on_device, [Knob("ram_expert_layers", tuple(values[least:]))]
    ram = model.n_layers if model.is_moe else 0
    bare = replace(default, ram_expert_layers=ram)
    by_layer = [with_layers(bare, g, idle.tiers, model.n_layers) for g in range(every + 1)]
    largest = max(config.gpu_layers for config in by_layer if config.gpu_layers == 0 or _fits_somehow(config, idle))
    reach = min(every, largest + _BEYOND_PREDICTION)
    return by_layer[largest], [Knob("gpu_layers", tuple(range(reach + 1)))]


def _fits_somehow(config: EngineConfig, idle: MemoryModel) -> bool:
    """Whether some way of dealing the layers out to the devices fits."""
    if idle.fits_fast(config) or len(idle.tiers) < 2 or config.gpu_layers == 0:
        return idle.fits_fast(config)
    n_layers = idle.model.n_layers
    return any(
        idle.fits_fast(spread_layers(config, idle.tiers, n_layers, percent)) for percent in main_percents(idle.tiers)
    )


def _with_fitting_batch(config: EngineConfig, idle: MemoryModel) -> EngineConfig:
    """The same with the largest micro-batch, its own at most, whose buffers the fast tier holds."""
    smaller = [replace(config, n_ubatch=size) for size in UBATCHES if size <= config.n_ubatch]
    return next((c for c in reversed(smaller) if idle.fits_fast(c)), smaller[0])


def _why_cache_is_idle(model: Model, default: EngineConfig, idle: MemoryModel, fits_whole: bool) -> str | None:
    tier = idle.tier
    if not model.is_moe:
        return "the model is dense: it has no routed experts to cache"
    if tier is None:
        return "this machine has no fast tier for hot experts (no GPU that llama.cpp can use)"
    if fits_whole:
        names = " and ".join(tier.name for tier in idle.tiers)
        return f"the whole model fits on {names}: there is nothing left to cache"
    bare = replace(cache_off(default, tier), n_ubatch=UBATCHES[0])
    if default.gpu_layers <= model.n_layers:
        bare = _canonical(replace(bare, gpu_layers=0))
    if idle.slots_that_fit(bare) == 0:
        one = idle.slot_bytes(bare)
        used = idle.footprint(replace(bare, cache=replace(_OFF, slots=1))).fast_bytes - one
        return (
            f"{tier.name} is too small for one expert slot a layer: that takes {one / MIB:,.1f} MiB, "
            f"and {max(0, tier.static_limit_bytes - used) / MIB:,.1f} MiB are left"
        )
    return None
