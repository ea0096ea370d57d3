"""ggml's registry and the native libraries, through ctypes."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import llama_cpp

from moetune.engine.config import CacheKnobs
from moetune.engine.measurement import CacheCounters
from moetune.errors import ExitCode, MoetuneError


@cache
def ggml() -> ctypes.CDLL:
    """ggml's registry: the copy llama-cpp-python itself runs on, so that what is loaded here is seen there."""
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml.so.0"))
    lib.ggml_backend_load.argtypes, lib.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    lib.ggml_backend_dev_by_name.argtypes, lib.ggml_backend_dev_by_name.restype = [ctypes.c_char_p], ctypes.c_void_p
    lib.ggml_backend_cpu_buffer_type.argtypes, lib.ggml_backend_cpu_buffer_type.restype = [], ctypes.c_void_p
    size = ctypes.POINTER(ctypes.c_size_t)
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_version.argtypes, lib.ggml_version.restype = [], ctypes.c_char_p
    return lib


def engine_version() -> str:
    """What a tuned profile depends on besides model and machine: the plugin's and ggml's versions."""
    from moetune import __version__

    return f"moetune {__version__}, ggml {ggml().ggml_version().decode()}, llama-cpp-python {llama_cpp.__version__}"


def device_handle(name: str) -> int | None:
    """ggml device of that name, None when the registry has none."""
    handle: int | None = ggml().ggml_backend_dev_by_name(name.encode())
    return handle


def device_memory_bytes(name: str) -> tuple[int, int]:
    """Used, by whomever, and total memory of a device; zeros when there is none or it reports none."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    handle = device_handle(name)
    if handle is None:
        return 0, 0
    ggml().ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value, total.value


def device_used_bytes(name: str) -> int:
    """Total minus free memory of a device, whoever uses it; 0 when the device reports none."""
    return device_memory_bytes(name)[0]


def plugin_path() -> Path:
    """The hot-expert cache as a file, for GGML_BACKEND_PATH too."""
    return Path(str(files("moetune.engine") / "libggml_hotcache.so"))


def load_backend(path: Path, environment: Mapping[str, str]) -> None:
    """Register the ggml backend in `path`, which reads its first settings from `environment`.

    Raises MoetuneError(ENGINE) when ggml refuses it.
    """
    os.environ.update(environment)
    if not ggml().ggml_backend_load(str(path).encode()):
        raise MoetuneError(
            f"ggml could not load {path.name}",
            "Reinstall moetune so that the engine is built against the installed llama-cpp-python.",
            ExitCode.ENGINE,
        )


class _LayerStruct(ctypes.Structure):
    """`struct hotcache_layer` of engine/native/hotcache.h."""

    _fields_ = [
        ("layer", ctypes.c_int32),
        ("n_slots", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("slot_bytes", "hits", "misses", "promotions", "evictions")),
        *((name, ctypes.c_int64) for name in ("bytes_moved", "steps")),
        *((name, ctypes.c_double) for name in ("hot_s", "cold_s", "wait_s", "stall_s")),
        *((name, ctypes.c_int64) for name in ("device_steps", "plain_steps", "ahead_steps", "whole_steps")),
        *((name, ctypes.c_int64) for name in ("prompt_steps", "streamed_steps", "streamed_bytes", "repacked_bytes")),
        *((name, ctypes.c_int32) for name in ("pays", "reserved")),
    ]


class _ExpertStruct(ctypes.Structure):
    """`struct hotcache_expert` of engine/native/hotcache.h."""

    _fields_ = [("heat", ctypes.c_double), ("resident", ctypes.c_int32), ("reserved", ctypes.c_int32)]


@dataclass(frozen=True)
class LayerState:
    """One routed FFN: its slots and what it counted since the last reset."""

    layer: int
    n_slots: int
    slot_bytes: int
    evictions: int
    counters: CacheCounters


# Experts are loaded into the plugin's memory though it has no slots yet: they come and go while the model stays.
_HELD = MappingProxyType({"hold": "1"})


def cache_settings(knobs: CacheKnobs) -> dict[str, str]:
    """Every knob as the plugin's setting of it; the number of slots comes last, when all else is known."""
    settings: dict[str, Any] = {
        "policy": knobs.policy.value,
        "interval": knobs.interval_tokens,
        "hysteresis": knobs.hysteresis,
        "promotions": knobs.promotions,
        "min_sightings": knobs.min_sightings,
        "dwell": knobs.dwell_tokens,
        "half_life": knobs.half_life_tokens,
        "spread": knobs.spread.value,
        "whole_layers": knobs.whole_layers,
        "profile": knobs.routing or "",
        "workload": knobs.workload or "",
        "prefill": knobs.prefill.value,
        "repack": int(knobs.repack),
        "guard": int(knobs.guard),
        "reserve": "auto" if knobs.reserve_bytes is None else knobs.reserve_bytes,
        "ahead": knobs.ahead.value,
        "bytes": knobs.budget_bytes,
        "slots": knobs.slots,
    }
    return {key: str(value) for key, value in settings.items()}


class HotCache:
    """The loaded plugin. `device` is the ggml name of the fast tier, `cold_device` computes the misses.

    `settings` are what models loaded from now on meet (engine/native/cache/settings.h).
    """

    def __init__(self, device: str, cold_device: str | None = None, settings: Mapping[str, str] = _HELD) -> None:
        settings = {"device": device, "cold_device": cold_device or "", **settings}
        load_backend(plugin_path(), {f"HOTCACHE_{key.upper()}": value for key, value in settings.items()})
        self._lib = ctypes.CDLL(str(plugin_path()))
        self._lib.hotcache_set.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
        self._lib.hotcache_layers.argtypes = [ctypes.POINTER(_LayerStruct), ctypes.c_size_t]
        self._lib.hotcache_layers.restype = ctypes.c_size_t
        self._lib.hotcache_experts.argtypes = [ctypes.c_int32, ctypes.POINTER(_ExpertStruct), ctypes.c_size_t]
        self._lib.hotcache_experts.restype = ctypes.c_size_t

    def set(self, key: str, value: str) -> None:
        """Change one setting live. Raises MoetuneError(ENGINE) with the plugin's own reason."""
        error = ctypes.create_string_buffer(512)
        if self._lib.hotcache_set(key.encode(), value.encode(), error, len(error)) != 0:
            raise MoetuneError(error.value.decode(), "Use a value the cache accepts.", ExitCode.ENGINE)

    def apply(self, knobs: CacheKnobs) -> None:
        """Take over all knobs and start from empty slots, so that nothing is left of the last configuration."""
        self.set("workload", "")  # the last profile's, which the next one may not have
        for key, value in cache_settings(knobs).items():
            self.set(key, value)
        self._lib.hotcache_clear()

    def reset_counters(self) -> None:
        """Count from zero; slots and heat stay."""
        self._lib.hotcache_reset_counters()

    def experts(self, layer: int) -> tuple[list[float], list[int]]:
        """Of a layer: the heat of every expert (choices while generating, fading), and which experts slots serve."""
        capacity = self._lib.hotcache_experts(layer, None, 0)
        structs = (_ExpertStruct * max(capacity, 1))()
        filled = min(self._lib.hotcache_experts(layer, structs, capacity), capacity)
        return [s.heat for s in structs[:filled]], [i for i, s in enumerate(structs[:filled]) if s.resident]

    def layers(self) -> list[LayerState]:
        """State of every layer that has asked for slots, in no particular order of execution."""
        capacity = self._lib.hotcache_layers(None, 0)
        structs = (_LayerStruct * max(capacity, 1))()
        filled = min(self._lib.hotcache_layers(structs, capacity), capacity)
        counted = [field.name for field in fields(CacheCounters) if field.name != "layers_off"]
        return [
            LayerState(
                s.layer,
                s.n_slots,
                s.slot_bytes,
                s.evictions,
                CacheCounters(**{name: getattr(s, name) for name in counted}, layers_off=int(s.pays == 0)),
            )
            for s in structs[:filled]
        ]


def total(layers: list[LayerState]) -> CacheCounters | None:
    """Counters summed over the layers; None when no layer has slots."""
    if not layers:
        return None
    every = [state.counters for state in layers]
    return CacheCounters(**{field.name: sum(getattr(c, field.name) for c in every) for field in fields(CacheCounters)})
