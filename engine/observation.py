"""A look at this engine process while it works, from a thread of its own."""

import os
import time

import psutil

from moetune.engine.activity import Activity, DeviceMemory, Flow, LayerActivity
from moetune.engine.library import HotCache, LayerState, device_memory_bytes

_LONGEST_NAME = 200


def observe(
    model_name: str, flow: Flow, devices: tuple[str, ...], cache: HotCache | None, *, emulated: bool
) -> Activity:
    """What this process does now. devices: llama.cpp's names of those that the model lies on."""
    return Activity(
        model=model_name[:_LONGEST_NAME],
        emulated=emulated,
        at_s=time.time(),
        prompt_tokens=flow.prompt_tokens,
        reply_tokens=flow.reply_tokens,
        kv=flow.kv,
        rss_bytes=psutil.Process(os.getpid()).memory_info().rss,
        devices=tuple(DeviceMemory(name, *device_memory_bytes(name)) for name in devices),
        layers=_layers(cache) if cache is not None else (),
    )


def _layers(cache: HotCache) -> tuple[LayerActivity, ...]:
    return tuple(_layer(cache, state) for state in sorted(cache.layers(), key=lambda state: state.layer))


def _layer(cache: HotCache, state: LayerState) -> LayerActivity:
    heat, residents = cache.experts(state.layer)
    counters = state.counters
    return LayerActivity(
        layer=state.layer,
        n_slots=state.n_slots,
        hits=counters.hits,
        misses=counters.misses,
        promotions=counters.promotions,
        bytes_moved=counters.bytes_moved,
        pays=not counters.layers_off,
        heat=tuple(round(each, 3) for each in heat),
        residents=tuple(residents),
    )
