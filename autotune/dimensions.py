"""Which knobs a search has: all that do something on this machine and model, those that matter most first."""

from typing import cast

from moetune.autotune.knobs import (
    HYSTERESES,
    INTERVALS,
    PROMOTIONS,
    RESERVES,
    SLOT_PERCENTS,
    Choice,
    Knob,
    Of,
    has_flash_attention,
    kv_choices,
    named,
    quantised,
    thread_choices,
    ubatch_choices,
)
from moetune.autotune.memory import MemoryModel
from moetune.autotune.request import SearchRequest
from moetune.autotune.split import main_percents
from moetune.engine.config import Ahead, FlashAttention, KvType, LoadMode, Policy, PromptWay, Spread
from moetune.engine.model import Model
from moetune.hardware.machine import Cpu

STOCK, CACHE, ON_CPU = "stock", "cache", "cpu"


def dimensions(
    model: Model, cpu: Cpu, memory: MemoryModel, request: SearchRequest, placement: list[Knob], engines: tuple[str, ...]
) -> list[Knob]:
    """placement: the knob that says which layers lie on the devices, if there are any. engines: what may run it."""
    engine = [Knob("engine", engines, Of.SPACE, ordered=False)] if len(engines) > 1 else []
    cache = _cache_knobs(memory, has_routing=request.routing is not None) if CACHE in engines else []
    return [*engine, *placement, *_device_knobs(memory), *cache[:1], *_stock_knobs(model, cpu, request), *cache[1:]]


def _device_knobs(memory: MemoryModel) -> list[Knob]:
    if len(memory.tiers) < 2:
        return []
    names = cast(tuple[Choice, ...], tuple(tier.name for tier in memory.tiers))
    return [Knob("device", names, ordered=False), Knob("main_percent", main_percents(memory.tiers), Of.SPACE)]


def _stock_knobs(model: Model, cpu: Cpu, request: SearchRequest) -> list[Knob]:
    of_k, of_v = kv_choices(model, request.kv_types), kv_choices(model, request.kv_types, of_v=True)
    caches = [named("type_k", KvType, of_k), named("type_v", KvType, of_v)]
    if model.is_mla:
        caches = [Knob("type_kv", tuple(str(kind) for kind in of_v), Of.SPACE, ordered=False)]
    flash = has_flash_attention(model) and not all(quantised(kind) for kind in of_v)
    return [
        Knob("n_threads", thread_choices(cpu)),
        Knob("n_threads_batch", thread_choices(cpu)),
        Knob("n_ubatch", ubatch_choices(request.n_ctx, request.workload.prompt_tokens)),
        *caches,
        Knob("repack", (True, False), Of.SPACE, ordered=False),
        # The other modes load at another speed, or keep what is loaded from being pushed out; then they are these two.
        named("load_mode", LoadMode, (LoadMode.MMAP, LoadMode.NONE)),
        *([named("flash_attn", FlashAttention, (FlashAttention.AUTO, FlashAttention.OFF))] if flash else []),
    ]


def _cache_knobs(memory: MemoryModel, *, has_routing: bool) -> list[Knob]:
    policies = (Policy.HEAT, Policy.LRU, Policy.LFRU, *([Policy.STATIC] if has_routing else []))
    knobs = [
        Knob("slots_percent", SLOT_PERCENTS, Of.SPACE),
        Knob("interval_tokens", INTERVALS, Of.CACHE),
        Knob("hysteresis", HYSTERESES, Of.CACHE),
        Knob("promotions", PROMOTIONS, Of.CACHE),
        named("policy", Policy, policies, Of.CACHE),
    ]
    if has_routing:
        knobs.append(named("spread", Spread, tuple(Spread), Of.CACHE))
    if memory.tier is None or memory.tier.on_host:
        # What follows is about memory that only a device has.
        return knobs
    return [
        *knobs,
        Knob("reserve", RESERVES, Of.SPACE),
        named("prefill", PromptWay, (PromptWay.AUTO, PromptWay.STREAM, PromptWay.COLD), Of.CACHE),
        named("ahead", Ahead, tuple(Ahead), Of.CACHE),
    ]
