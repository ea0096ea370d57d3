"""The static search space of one model on one machine, and the way between its parameters and configurations.

The slots are a share of the memory that everything else leaves free, so that every point of the space is one that
fits or is known not to. A knob that changes nothing on this machine or model is not in the space at all.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from optuna.distributions import BaseDistribution

from moetune.autotune.knobs import (
    HYSTERESES,
    INTERVALS,
    PROMOTIONS,
    SLOT_PERCENTS,
    UBATCHES,
    Choice,
    Knob,
    default_threads,
    kv_choices,
    thread_choices,
    ubatch_choices,
)
from moetune.autotune.memory import MIB, MemoryModel
from moetune.autotune.request import SearchRequest
from moetune.autotune.tier import FastTier
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.model import Model
from moetune.hardware.machine import Cpu

SPACE_VERSION = 1
Params = Mapping[str, Choice]
# How far below the predicted limit placements stay in the space, in case the prediction was too careful.
_BEYOND_PREDICTION = 2


@dataclass(frozen=True)
class Space:
    """The knobs, and what they leave fixed.

    default: stock llama.cpp with default knobs, the device given and its layers placed as the knobs below vary it.
    cache_idle: why the cache takes no part, None where it does. fits_whole: the fast tier holds the whole model.
    """

    model: Model
    tier: FastTier | None
    default: EngineConfig
    knobs: tuple[Knob, ...]
    cache_idle: str | None
    fits_whole: bool

    @property
    def has_cache(self) -> bool:
        return self.cache_idle is None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {knob.name: knob.distribution for knob in self.knobs}

    @property
    def digest(self) -> str:
        """Changes whenever the meaning of stored parameters does."""
        described = [SPACE_VERSION, [[knob.name, knob.choices, knob.ordered] for knob in self.knobs]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]

    def choices(self, name: str) -> tuple[Choice, ...]:
        """The choices of a knob; empty when it is not in this space."""
        return next((knob.choices for knob in self.knobs if knob.name == name), ())

    def config_of(self, params: Params, memory: MemoryModel) -> EngineConfig:
        """The configuration a point of the space stands for, in canonical form."""
        chosen: dict[str, Choice] = {knob.name: knob.decode(params[knob.name]) for knob in self.knobs}
        config = replace(
            self.default,
            n_threads=int(chosen.get("n_threads", self.default.n_threads)),
            n_ubatch=int(chosen.get("n_ubatch", self.default.n_ubatch)),
            type_k=KvType(str(chosen.get("type_kv", chosen.get("type_k", self.default.type_k)))),
            type_v=KvType(str(chosen.get("type_kv", chosen.get("type_v", self.default.type_v)))),
            gpu_layers=int(chosen.get("gpu_layers", self.default.gpu_layers)),
            ram_expert_layers=int(chosen.get("ram_expert_layers", self.default.ram_expert_layers)),
        )
        if chosen.get("engine", "stock") == "stock":
            return replace(config, repack=bool(chosen.get("repack", self.default.repack)))
        return self._cached(config, chosen, memory)

    def _cached(self, stock: EngineConfig, chosen: dict[str, Choice], memory: MemoryModel) -> EngineConfig:
        bare = cache_off(stock, self.tier)
        slots = memory.slots_that_fit(bare, int(chosen["slots_percent"]) / 100)
        if slots == 0:
            return bare
        knobs = CacheKnobs(
            slots=slots,
            interval_tokens=int(chosen["interval_tokens"]),
            hysteresis=float(chosen["hysteresis"]),
            promotions=int(chosen["promotions"]),
        )
        return replace(bare, cache=knobs)

    def params_of(self, config: EngineConfig, memory: MemoryModel) -> dict[str, Choice]:
        """The point of the space nearest to a configuration; exact for what `config_of` returned."""
        cache = config.cache
        knobs = cache if cache is not None and cache.slots else CacheKnobs(slots=0)
        values: dict[str, Choice] = {
            "n_threads": config.n_threads,
            "n_ubatch": config.n_ubatch,
            "type_kv": config.type_k,
            "type_k": config.type_k,
            "type_v": config.type_v,
            "gpu_layers": config.gpu_layers,
            "ram_expert_layers": config.ram_expert_layers,
            "repack": config.repack,
            "engine": "stock" if cache is None else "cache",
            "slots_percent": self._percent_of(config, memory),
            "interval_tokens": knobs.interval_tokens,
            "hysteresis": knobs.hysteresis,
            "promotions": knobs.promotions,
        }
        return {knob.name: knob.encode(values[knob.name]) for knob in self.knobs}

    def _percent_of(self, config: EngineConfig, memory: MemoryModel) -> int:
        if config.cache is None or config.cache.slots == 0:
            return 0
        bare = cache_off(replace(config, cache=None), self.tier)
        slots = config.cache.slots
        return min(SLOT_PERCENTS, key=lambda p: (abs(memory.slots_that_fit(bare, p / 100) - slots), p))


def cache_off(stock: EngineConfig, tier: FastTier | None) -> EngineConfig:
    """The same placement with the plugin loaded and no slots; its weights cannot use the repacked layout."""
    device = tier.name if tier is not None else None
    return replace(stock, device=device, cache=CacheKnobs(slots=0), repack=False)


def build_space(model: Model, cpu: Cpu, memory: MemoryModel, request: SearchRequest) -> Space:
    """The space of this model on this machine; reads only what is the same tomorrow (total, not free, memory)."""
    tier = memory.tier
    idle = replace(memory, tier=replace(tier, free_bytes=tier.total_bytes)) if tier else memory
    default = _default(model, cpu, request, tier)
    placement: list[Knob] = []
    if tier is not None and not tier.on_host:
        default, placement = _placement(model, default, idle)
    whole = replace(default, gpu_layers=model.n_layers + 1, ram_expert_layers=0)
    fits_whole = bool(placement) and idle.fits_fast(whole)
    cache_idle = _why_cache_is_idle(model, default, idle, fits_whole)
    knobs = [*_common_knobs(model, cpu, request), *placement, *(_cache_knobs() if cache_idle is None else ())]
    allowed = dict(request.choices)
    kept = [replace(k, choices=tuple(c for c in k.choices if c in allowed.get(k.name, k.choices))) for k in knobs]
    return Space(model, tier, default, tuple(k for k in kept if len(k.choices) > 1 or k.name in allowed), cache_idle, fits_whole)


def _default(model: Model, cpu: Cpu, request: SearchRequest, tier: FastTier | None) -> EngineConfig:
    kinds = kv_choices(model, request.kv_types)
    ubatches = ubatch_choices(request.n_ctx, request.workload.prompt_tokens)
    return EngineConfig(
        n_ctx=request.n_ctx,
        n_threads=default_threads(cpu, emulated=tier is not None and tier.emulated),
        n_ubatch=512 if 512 in ubatches else ubatches[-1],
        type_k=KvType.F16 if KvType.F16 in kinds else kinds[0],
        type_v=KvType.F16 if KvType.F16 in kinds else kinds[0],
        # Stock llama.cpp on the CPU names no device even where the CPU plays the cache's fast tier.
        device=tier.name if tier is not None and not tier.on_host else None,
    )


def _placement(model: Model, default: EngineConfig, idle: MemoryModel) -> tuple[EngineConfig, list[Knob]]:
    """All dense parts on the device and experts by layer where that fits; whole layers from the back otherwise."""
    every = model.n_layers + 1
    dense_on_device = _with_fitting_batch(replace(default, gpu_layers=every, ram_expert_layers=model.n_layers), idle)
    if model.is_moe and idle.fits_fast(dense_on_device):
        values = sorted({0, *(index + 1 for index in model.moe_layers[:-1]), model.n_layers})
        fitting = [v for v in values if idle.fits_fast(replace(dense_on_device, ram_expert_layers=v))]
        least = max(0, values.index(fitting[0] if fitting else values[-1]) - _BEYOND_PREDICTION)
        return dense_on_device, [Knob("ram_expert_layers", tuple(values[least:]))]
    ram = model.n_layers if model.is_moe else 0
    by_layer = [replace(default, gpu_layers=g, ram_expert_layers=ram) for g in range(every + 1)]
    largest = max(config.gpu_layers for config in by_layer if config.gpu_layers == 0 or idle.fits_fast(config))
    reach = min(every, largest + _BEYOND_PREDICTION)
    best = replace(default, gpu_layers=largest, ram_expert_layers=ram)
    return best, [Knob("gpu_layers", tuple(range(reach + 1)))]


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
        return f"the whole model fits on {tier.name}: there is nothing left to cache"
    bare = replace(cache_off(default, tier), n_ubatch=UBATCHES[0])
    if default.gpu_layers <= model.n_layers:
        bare = replace(bare, gpu_layers=0)
    if idle.slots_that_fit(bare, 1.0) == 0:
        used = idle.footprint(bare).fast_bytes
        return (
            f"{tier.name} is too small for one expert slot a layer: that takes {idle.slot_bytes(bare) / MIB:,.1f} MiB, "
            f"and {max(0, tier.static_limit_bytes - used) / MIB:,.1f} MiB are left"
        )
    return None


def _common_knobs(model: Model, cpu: Cpu, request: SearchRequest) -> list[Knob]:
    kinds = cast(tuple[Choice, ...], tuple(str(kind) for kind in kv_choices(model, request.kv_types)))
    caches = ["type_kv"] if model.is_mla else ["type_k", "type_v"]
    return [
        Knob("n_threads", thread_choices(cpu)),
        Knob("n_ubatch", ubatch_choices(request.n_ctx, request.workload.prompt_tokens)),
        *(Knob(name, kinds, ordered=False) for name in caches),
        Knob("repack", (True, False), ordered=False),
    ]


def _cache_knobs() -> list[Knob]:
    return [
        Knob("engine", ("stock", "cache"), ordered=False),
        Knob("slots_percent", SLOT_PERCENTS),
        Knob("interval_tokens", INTERVALS),
        Knob("hysteresis", HYSTERESES),
        Knob("promotions", PROMOTIONS),
    ]
