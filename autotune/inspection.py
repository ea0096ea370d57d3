"""What is in a model's file, and how much of it fits a machine: by arithmetic alone, nothing is run."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from moetune.autotune.baselines import ALL_ON_DEVICE, EXPERTS_IN_RAM, STOCK_CPU
from moetune.autotune.knobs import UBATCHES, default_threads, kv_choices
from moetune.autotune.memory import MemoryModel, memory_of
from moetune.autotune.tier import NO_DEVICE, choose_tiers
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.model import Model
from moetune.hardware.machine import Machine

_SHOWN_KV = tuple(kind for kind in KvType if kind is not KvType.F32)
# Contexts are told apart by so many positions; llama.cpp rounds them up to as many.
_CTX_STEP = 256
# Looked for up to here in a model that does not say what it was made for.
_UNKNOWN_CTX = 1 << 20
# The usual one, and the smallest that a search tries: what its buffers leave is the most there can be.
_UBATCHES = (EngineConfig.n_ubatch, UBATCHES[0])


@dataclass(frozen=True)
class Part:
    """One kind of weights: bytes in the file, and bytes that one token reads of them."""

    kind: str
    file_bytes: int
    read_bytes: int


@dataclass(frozen=True)
class Longest:
    """The longest context, in tokens, of one placement with K and V of one type; 0 where not even a short one fits.

    In the smallest micro-batches.
    """

    placement: str
    kv: KvType
    n_ctx: int


@dataclass(frozen=True)
class Room:
    """What one device holds at the context asked for, beside the reserve and buffers for micro-batches of n_ubatch.

    layers: whole ones, experts included, the output layer counted (llama.cpp's -ngl). With the dense part of every
    layer there: expert_layers, whose experts fit too; slots, expert slots a layer instead. None: they do not fit.
    """

    device: str
    description: str
    emulated: bool
    limit_bytes: int
    n_ubatch: int
    layers: int
    expert_layers: int | None
    slots: int | None


@dataclass(frozen=True)
class Inspection:
    """kv_bytes_per_token: K and V of that type, for types that this model's heads allow; state_bytes: a sequence's
    recurrent state, whatever its length. rooms: of each device with memory of its own, in two sizes of micro-batches.
    """

    model: Model
    machine: Machine
    n_ctx: int
    ram_bytes: int
    parts: tuple[Part, ...]
    kv_bytes_per_token: dict[KvType, float]
    state_bytes: int
    rooms: tuple[Room, ...]
    longest: tuple[Longest, ...]

    def to_dict(self) -> dict[str, Any]:
        """For programs: sizes in bytes, contexts in tokens."""
        model = self.model
        about = {name: getattr(model, name) for name in _ABOUT}
        about["files"] = [str(path) for path in model.paths]
        about["moe_layers"] = len(model.moe_layers)
        about["expert_bytes"] = expert_bytes(model)
        return {
            "model": about,
            "parts": [asdict(part) for part in self.parts],
            "kv_bytes_per_token": {str(kind): size for kind, size in self.kv_bytes_per_token.items()},
            "state_bytes": self.state_bytes,
            "machine": self.machine.label,
            "ram_available_bytes": self.ram_bytes,
            "context_tokens": self.n_ctx,
            "devices": [asdict(room) for room in self.rooms],
            "longest_context": [asdict(longest) for longest in self.longest],
        }


_ABOUT = (
    *("name", "architecture", "quant", "fingerprint", "n_layers", "n_expert", "n_expert_used", "n_embd", "n_head"),
    *("n_vocab", "context_length", "is_mla", "has_chat_template", "tensor_bytes", "file_bytes"),
)


def inspect_model(model: Model, machine: Machine, devices: str | None, n_ctx: int) -> Inspection:
    """Everything that its header, and what this machine has of memory, say of a model at a context of `n_ctx`.

    devices: as `choose_tiers` takes them, each looked at by itself.
    """
    allowed = [kind for kind in kv_choices(model, _SHOWN_KV) if kind in kv_choices(model, _SHOWN_KV, of_v=True)]
    memories = [memory_of(model, machine, tier.name) for tier in choose_tiers(machine, devices)]
    bare = EngineConfig(n_ctx=n_ctx, n_threads=default_threads(machine.cpu))
    return Inspection(
        model=model,
        machine=machine,
        n_ctx=n_ctx,
        ram_bytes=machine.memory.available_bytes,
        parts=tuple(_parts(model)),
        kv_bytes_per_token={kind: model.kv_bytes_per_token(kind, kind) for kind in allowed},
        state_bytes=4 * sum(layer.state_values for layer in model.layers),
        rooms=tuple(_room(memory, replace(bare, n_ubatch=size)) for memory in memories for size in _UBATCHES),
        longest=tuple(
            _longest(memories, memory_of(model, machine, NO_DEVICE), replace(bare, n_ubatch=_UBATCHES[-1]), allowed)
        ),
    )


def expert_bytes(model: Model) -> tuple[int, int]:
    """The smallest and the largest routed expert; zeros for a dense model."""
    sizes = [layer.expert_bytes for layer in model.layers if layer.expert_bytes]
    return min(sizes, default=0), max(sizes, default=0)


def _parts(model: Model) -> Iterator[Part]:
    dense = sum(layer.dense_bytes for layer in model.layers)
    routed = sum(layer.routed_bytes for layer in model.layers)
    used = sum(layer.expert_bytes * min(model.n_expert_used, model.n_expert) for layer in model.layers)
    own_output = model.tensor_bytes - dense - routed - model.embedding_bytes - model.other_bytes
    yield Part("routed experts", routed, used)
    yield Part("dense parts", dense, dense)
    yield Part("embedding", model.embedding_bytes, model.embedding_bytes // max(1, model.n_vocab))
    yield Part("output" if own_output else "output (the embedding)", own_output, model.output_bytes)
    yield Part("other", model.other_bytes, model.other_bytes)


def _room(memory: MemoryModel, bare: EngineConfig) -> Room:
    tier, model = memory.tiers[0], memory.model
    every = model.n_layers + 1
    dense = _dense_on_device(memory, bare)
    on_device = replace(dense, ram_expert_layers=0)
    fits_dense = memory.fits_fast(dense)
    in_ram = _least(model.n_layers, lambda n: memory.fits_fast(replace(dense, ram_expert_layers=n)))
    slots = memory.slots_that_fit(replace(dense, cache=CacheKnobs(slots=0)))
    return Room(
        device=tier.name,
        description=tier.description,
        emulated=tier.emulated,
        limit_bytes=tier.limit_bytes,
        n_ubatch=dense.n_ubatch,
        layers=every - _least(every, lambda n: memory.fits_fast(replace(on_device, gpu_layers=every - n))),
        expert_layers=sum(index >= in_ram for index in model.moe_layers) if fits_dense and model.is_moe else None,
        slots=min(slots, model.n_expert) if fits_dense and model.is_moe else None,
    )


def _dense_on_device(memory: MemoryModel, bare: EngineConfig) -> EngineConfig:
    n_layers = memory.model.n_layers
    return replace(bare, device=memory.tiers[0].name, gpu_layers=n_layers + 1, ram_expert_layers=n_layers)


def _longest(
    memories: list[MemoryModel], in_ram: MemoryModel, bare: EngineConfig, allowed: list[KvType]
) -> Iterator[Longest]:
    model = in_ram.model
    for memory in memories:
        dense = _dense_on_device(memory, bare)
        placements = {ALL_ON_DEVICE: replace(dense, ram_expert_layers=0)}
        if model.is_moe:
            placements[EXPERTS_IN_RAM] = dense
        for name, config in placements.items():
            yield from _by_type(f"{memory.tiers[0].name}: {name}", memory, config, allowed)
    yield from _by_type(STOCK_CPU, in_ram, bare, allowed)


def _by_type(name: str, memory: MemoryModel, config: EngineConfig, allowed: list[KvType]) -> Iterator[Longest]:
    for kind in (KvType.F16, KvType.Q8_0):
        if kind in allowed:
            yield Longest(name, kind, longest_context(memory, replace(config, type_k=kind, type_v=kind)))


def longest_context(memory: MemoryModel, config: EngineConfig) -> int:
    """The most positions with which the configuration fits devices and RAM, up to what the model was made for."""
    most = memory.model.context_length or _UNKNOWN_CTX
    steps = -(-most // _CTX_STEP)
    short = _least(steps, lambda n: max(memory.excess_bytes(replace(config, n_ctx=(steps - n) * _CTX_STEP))) <= 0)
    return min((steps - short) * _CTX_STEP, most)


def _least(most: int, fits: Callable[[int], bool]) -> int:
    """The smallest number from 0 on that fits, where larger ones fit as well; `most` where nothing below it does."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
