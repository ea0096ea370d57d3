"""What can be set: one frozen value for a complete way to run a model."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, get_type_hints


class Change(StrEnum):
    """What it takes for a field of `EngineConfig` to have another value, from cheap to dear."""

    LIVE = "live"
    CONTEXT = "context"
    RELOAD = "reload"


class Policy(StrEnum):
    """How the hot-expert cache ranks experts for its slots."""

    HEAT = "heat"
    LRU = "lru"
    LFRU = "lfru"
    STATIC = "static"


class Spread(StrEnum):
    """How a budget in bytes is shared out among the layers."""

    FLAT = "flat"
    COVERAGE = "coverage"


class PromptWay(StrEnum):
    """Who computes batches of a prompt while the cache is on."""

    AUTO = "auto"
    STREAM = "stream"
    COLD = "cold"
    SCHEDULER = "scheduler"


class Ahead(StrEnum):
    """Whether the fast tier begins a token's experts before the host knows them; by the names the cache uses."""

    AUTO = "auto"
    NEVER = "0"
    ALWAYS = "1"


class FlashAttention(StrEnum):
    """llama.cpp's -fa; AUTO is on wherever the devices can, and always with a quantised V cache, which needs it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LoadMode(StrEnum):
    """How weights come into memory, by llama.cpp's own names: NONE reads them, DIO past the page cache."""

    MMAP = "mmap"
    NONE = "none"
    MLOCK = "mlock"
    MMAP_MLOCK = "mmap+mlock"
    DIO = "dio"


class SplitMode(StrEnum):
    """llama.cpp's -sm among several devices: whole layers, or each layer's rows where the backend can."""

    LAYER = "layer"
    ROW = "row"


class KvType(StrEnum):
    """KV-cache types libllama accepts, by the name llama.cpp's own flags use. `bpv` in `KV_BITS_PER_VALUE`."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    IQ4_NL = "iq4_nl"


# Bits a value, block scales included (block bytes * 8 / block length in ggml's type table).
KV_BITS_PER_VALUE: dict[KvType, float] = {
    KvType.F32: 32.0,
    KvType.F16: 16.0,
    KvType.BF16: 16.0,
    KvType.Q8_0: 8.5,
    KvType.Q5_1: 6.0,
    KvType.Q5_0: 5.5,
    KvType.Q4_1: 5.0,
    KvType.Q4_0: 4.5,
    KvType.IQ4_NL: 4.5,
}


@dataclass(frozen=True)
class CacheKnobs:
    """Settings of the hot-expert cache; every one can change while the model stays loaded.

    slots: expert slots a layer in the fast tier; 0 keeps the plugin loaded and the cache off.
    interval_tokens: tokens between two rebalances. hysteresis: how many times hotter (LRU: more recent) a newcomer must
    be than the resident it replaces. promotions: most experts promoted at one rebalance of one layer.
    min_sightings: sightings of late a newcomer must have on top of that (LRU: at all).
    dwell_tokens: tokens a newcomer is safe from eviction. half_life_tokens: tokens after which a sighting counts half.
    budget_bytes: used when `slots` is 0: as many slots as fit; first all experts of the last `whole_layers` layers,
    then spread flat or by the recorded routing in the file `routing` (of its `workload`, or of all), which also seeds
    them. prefill: who computes prompts. repack: misses are computed from a copy in the CPU's packed layout, at the
    price of the experts' size in RAM. guard: measure whether the cache pays, and switch it off where it does not.
    reserve_bytes: of the fast tier, never taken for slots; None is the cache's own choice, 1/128 of the device.
    ahead: whether a token's experts are begun before the host knows them.
    """

    slots: int
    interval_tokens: int = 1
    hysteresis: float = 1.25
    promotions: int = 2
    policy: Policy = Policy.HEAT
    min_sightings: int = 3
    dwell_tokens: int = 16
    half_life_tokens: float = 32.0
    budget_bytes: int = 0
    spread: Spread = Spread.FLAT
    whole_layers: int = 0
    routing: str | None = None
    workload: str | None = None
    prefill: PromptWay = PromptWay.AUTO
    repack: bool = False
    guard: bool = False
    reserve_bytes: int | None = None
    ahead: Ahead = Ahead.AUTO

    @property
    def on(self) -> bool:
        """Whether there are to be any slots."""
        return self.slots > 0 or self.budget_bytes > 0


@dataclass(frozen=True)
class EngineConfig:
    """One complete way to run a model; every field says what it takes to change it.

    n_threads: of decoding; n_threads_batch: of prompts, None for the same.
    device: ggml name of the fast tier ("CUDA0", "EMU0", "CPU"), None for plain CPU; it holds the cache's slots.
    more_devices: further ones, in order. tensor_split: how many of the layers given to devices go to `device` and to
    each further one, the first layers first; proportions as in llama.cpp's -ts, empty for a choice by free memory.
    gpu_layers: llama.cpp's -ngl: 1 puts the output layer on a device, each further one a layer's dense part, from the
    last layer on; n_layers + 1 is all of it.
    ram_expert_layers: the experts of the first so many layers lie in RAM (llama.cpp's -ncmoe).
    cache: None is stock llama.cpp, the plugin not even loaded. repack: llama.cpp's repacked CPU layout
    (`use_extra_bufts`), which the plugin's own weights cannot use, nor weights in memory pinned for a device: that is
    llama.cpp's first choice where there is a device, unless no_host or a memory map forbids it.
    """

    n_ctx: Annotated[int, Change.CONTEXT]
    n_threads: Annotated[int, Change.LIVE]
    n_ubatch: Annotated[int, Change.CONTEXT] = 512
    type_k: Annotated[KvType, Change.CONTEXT] = KvType.F16
    type_v: Annotated[KvType, Change.CONTEXT] = KvType.F16
    device: Annotated[str | None, Change.RELOAD] = None
    gpu_layers: Annotated[int, Change.RELOAD] = 0
    ram_expert_layers: Annotated[int, Change.RELOAD] = 0
    # Its knobs; that the plugin is there at all takes a reload, see `placement`.
    cache: Annotated[CacheKnobs | None, Change.LIVE] = None
    repack: Annotated[bool, Change.RELOAD] = True
    load_mode: Annotated[LoadMode, Change.RELOAD] = LoadMode.MMAP
    no_host: Annotated[bool, Change.RELOAD] = False
    n_threads_batch: Annotated[int | None, Change.LIVE] = None
    flash_attn: Annotated[FlashAttention, Change.CONTEXT] = FlashAttention.AUTO
    more_devices: Annotated[tuple[str, ...], Change.RELOAD] = ()
    tensor_split: Annotated[tuple[int, ...], Change.RELOAD] = ()
    split_mode: Annotated[SplitMode, Change.RELOAD] = SplitMode.LAYER

    @property
    def has_slots(self) -> bool:
        """Whether hot experts are cached at all."""
        return self.cache is not None and self.cache.on

    @property
    def batch_threads(self) -> int:
        """Threads that prompts are computed with."""
        return self.n_threads_batch or self.n_threads

    @property
    def on_cpu(self) -> "EngineConfig":
        """The same without any device, and so without a cache."""
        return replace(
            self, device=None, more_devices=(), tensor_split=(), gpu_layers=0, ram_expert_layers=0, cache=None
        )

    def tuned_like(self, other: "EngineConfig") -> "EngineConfig":
        """The same placement, and cache if any, with the other's settings that stock llama.cpp and the cache share."""
        return replace(self, **{name: getattr(other, name) for name in _SHARED})

    @property
    def placement(self) -> tuple[object, ...]:
        """What needs the model loaded anew when it changes."""
        return (*self._values(Change.RELOAD), self.cache is not None)

    @property
    def context(self) -> tuple[object, ...]:
        """What needs a new context when it changes."""
        return self._values(Change.CONTEXT)

    def _values(self, change: Change) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name, takes in _CHANGES.items() if takes is change)


def changes(config_type: type) -> dict[str, Change]:
    """What each field takes to change. Raises TypeError where a field does not say exactly one thing."""
    found: dict[str, Change] = {}
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        said = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Change)]
        if len(said) != 1:
            raise TypeError(f"{config_type.__name__}.{name} must say what it takes to change it: one Change")
        found[name] = said[0]
    return found


_CHANGES = changes(EngineConfig)
_SHARED = ("n_threads", "n_threads_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "load_mode")
