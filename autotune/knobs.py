"""One dimension of the search space, and the choices this machine and model leave for each."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from moetune.engine.config import KV_BITS_PER_VALUE, KvType
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Cpu

Choice = int | float | str | bool
UBATCHES = (64, 128, 256, 512, 1024, 2048)
INTERVALS = (1, 2, 4, 8, 16, 32, 64)
HYSTERESES = (1.0, 1.1, 1.25, 1.5, 2.0)
PROMOTIONS = (1, 2, 4, 8)
SLOT_PERCENTS = tuple(range(0, 101, 5))
# Of the memory a search keeps free on the fast tier anyway (`FastTier.reserve_bytes`).
RESERVES = (0.5, 1.0, 2.0)
_BLOCK_LENGTH = {kind: 32 for kind in KvType if KV_BITS_PER_VALUE[kind] < 16}
# llama.cpp computes these without flash attention, whatever it is told.
_NO_FLASH_ATTENTION = ("grok",)


class Of(StrEnum):
    """What a knob sets: the field of its own name, or something that `Space` works out."""

    CONFIG = "config"
    CACHE = "cache"
    SPACE = "space"


@dataclass(frozen=True)
class Knob:
    """A named dimension. Ordered choices are sampled by index, so that the sampler knows which are neighbours.

    kind: makes the field's value of a choice.
    """

    name: str
    choices: tuple[Choice, ...]
    of: Of = Of.CONFIG
    ordered: bool = True
    kind: Callable[[Choice], object] = lambda choice: choice

    @property
    def distribution(self) -> BaseDistribution:
        """The Optuna distribution of `encode`'s values."""
        return IntDistribution(0, len(self.choices) - 1) if self.ordered else CategoricalDistribution(self.choices)

    def encode(self, choice: Choice) -> Choice:
        """What Optuna stores for `choice`; what is no choice goes to the nearest one, without an order to the first."""
        if choice in self.choices:
            return self.choices.index(choice) if self.ordered else choice
        if not self.ordered:
            return self.choices[0]
        return min(range(len(self.choices)), key=lambda i: abs(float(self.choices[i]) - float(choice)))

    def decode(self, stored: Choice) -> Choice:
        """The choice Optuna's value stands for."""
        return self.choices[int(stored)] if self.ordered else stored


def named(name: str, kind: type[StrEnum], choices: tuple[StrEnum, ...], of: Of = Of.CONFIG) -> Knob:
    """A knob whose choices are names without an order."""
    return Knob(
        name, tuple(str(choice) for choice in choices), of, ordered=False, kind=lambda choice: kind(str(choice))
    )


def default_threads(cpu: Cpu, *, emulated: bool = False) -> int:
    """One thread a physical core we may use: what llama.cpp's users start from.

    An emulated accelerator computes on one of these cores, which a real one would leave free.
    """
    return max(1, min(cpu.physical_cores, cpu.usable_cores) - (1 if emulated else 0))


def thread_choices(cpu: Cpu) -> tuple[int, ...]:
    """Half, three quarters and all of the physical cores, and every usable logical one."""
    cores = default_threads(cpu)
    return tuple(sorted({max(1, cores // 2), max(1, cores * 3 // 4), cores, cpu.usable_cores}))


def ubatch_choices(n_ctx: int, prompt_tokens: int) -> tuple[int, ...]:
    """Powers of two up to the context; beyond the prompt's own length a larger one changes nothing."""
    most = max(256, prompt_tokens)
    upper = next((size for size in UBATCHES if size >= most), UBATCHES[-1])
    return tuple(size for size in UBATCHES if size <= min(upper, max(UBATCHES[0], n_ctx)))


def has_flash_attention(model: Model) -> bool:
    """Whether llama.cpp can compute this model's attention that way."""
    return model.architecture not in _NO_FLASH_ATTENTION


def quantised(kind: KvType) -> bool:
    """Whether a KV-cache type comes in blocks; as V it needs flash attention."""
    return kind in _BLOCK_LENGTH


def kv_choices(model: Model, wanted: tuple[KvType, ...], *, of_v: bool = False) -> tuple[KvType, ...]:
    """The KV-cache types this model allows: a quantised block must divide its heads, and V needs flash attention."""

    def allowed(kind: KvType) -> bool:
        block = _BLOCK_LENGTH.get(kind, 1)
        caching = [layer for layer in model.layers if layer.k_values]
        divides = all(layer.head_dim_k % block == 0 and layer.head_dim_v % block == 0 for layer in caching)
        return divides and (has_flash_attention(model) or not of_v or not quantised(kind))

    choices = tuple(dict.fromkeys(kind for kind in wanted if allowed(kind)))
    if not choices:
        raise MoetuneError(
            f"None of the KV-cache types {', '.join(wanted)} suits this model's attention heads.",
            "Add f16 (--kv f16).",
            ExitCode.USAGE,
        )
    return choices
