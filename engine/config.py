"""What can be set: one frozen value for a complete way to run a model."""

from dataclasses import dataclass
from enum import StrEnum


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

    @property
    def on(self) -> bool:
        """Whether there are to be any slots."""
        return self.slots > 0 or self.budget_bytes > 0


@dataclass(frozen=True)
class EngineConfig:
    """One complete way to run a model.

    device: ggml name of the fast tier ("CUDA0", "EMU0", "CPU"), None for plain CPU.
    gpu_layers: llama.cpp's -ngl: 1 puts the output layer on `device`, each further one a layer's dense part, from the
    last layer on; n_layers + 1 is all of it.
    ram_expert_layers: the experts of the first so many layers lie in RAM (llama.cpp's -ncmoe).
    cache: None is stock llama.cpp, the plugin not even loaded. repack: llama.cpp's repacked CPU layout
    (`use_extra_bufts`), which the plugin's own weights cannot use.
    """

    n_ctx: int
    n_threads: int
    n_ubatch: int = 512
    type_k: KvType = KvType.F16
    type_v: KvType = KvType.F16
    device: str | None = None
    gpu_layers: int = 0
    ram_expert_layers: int = 0
    cache: CacheKnobs | None = None
    repack: bool = True
    mmap: bool = True

    @property
    def placement(self) -> tuple[object, ...]:
        """What needs the model loaded anew when it changes."""
        placed = (self.device, self.gpu_layers, self.ram_expert_layers, self.repack, self.mmap)
        return (*placed, self.cache is not None)

    @property
    def has_slots(self) -> bool:
        """Whether hot experts are cached at all."""
        return self.cache is not None and self.cache.on
