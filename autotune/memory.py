"""Predicts the memory of a configuration before anything is launched, and learns from what trials measured.

Placement follows llama.cpp: of n layers, `gpu_layers` = g > 0 puts the output layer and the last g - 1 repeating
layers on the device (layer i when i >= n + 1 - g), with their share of the KV cache; the token embedding stays in RAM.
Among several devices these layers are dealt out in order, by the proportions of `tensor_split`.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from moetune.autotune.calibration import Calibration, Parts
from moetune.autotune.tier import FastTier, choose_tiers
from moetune.engine.config import KV_BITS_PER_VALUE, EngineConfig, FlashAttention, PromptWay
from moetune.engine.model import Layer, Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine

MIB = 1 << 20
_PROCESS_BYTES = 160 * MIB
# The slots of a layer are one tensor a matrix, padded to the device's alignment: gate, up, down and their biases.
_SLOTS_PADDING_BYTES = 6 * 256
# The engine streams experts for prompts through two buffers of this share of the device, and at least one expert each,
# and computes so many (token, expert) pairs at a time.
_STAGING_SHARE = 1 / 128
_STAGING_PADDING_BYTES = 7 * 4096
_STREAMED_PAIRS = 512
STAGED_BATCH = 32  # from so many tokens on, the scheduler copies RAM experts to the device, cache or not


@dataclass(frozen=True)
class Footprint:
    """Predicted bytes: on the fast tier, of which `guessed_bytes` are estimated buffers, in RAM, and on each further
    device of the configuration.
    """

    fast_bytes: int
    guessed_bytes: int
    host_bytes: int
    more_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Raw:
    """Before any correction. known_bytes: exact ones on the fast tier; parts: of its buffers, upper estimates."""

    known_bytes: int
    parts: Parts
    host_bytes: int


@dataclass(frozen=True)
class MemoryModel:
    """tier: the device that configurations use first unless they name one of `more_tiers`.

    stock, plugin: what trials without and with the plugin taught about buffers; the two lay them out differently.
    """

    model: Model
    tier: FastTier | None
    host_limit_bytes: int
    stock: Calibration = Calibration()
    plugin: Calibration = Calibration()
    more_tiers: tuple[FastTier, ...] = ()

    @property
    def tiers(self) -> tuple[FastTier, ...]:
        return (self.tier, *self.more_tiers) if self.tier is not None else ()

    @property
    def fast_limit_bytes(self) -> int:
        """Of all devices together."""
        return sum(tier.limit_bytes for tier in self.tiers)

    def idle(self) -> "MemoryModel":
        """The same on devices that nobody uses: what it says is the same tomorrow."""
        tiers = tuple(replace(tier, free_bytes=tier.total_bytes) for tier in self.tiers)
        return replace(self, tier=tiers[0], more_tiers=tiers[1:]) if tiers else self

    def tier_of(self, device: str | None) -> FastTier | None:
        """The tier of that name; the first one where the configuration has no device of its own."""
        return next((tier for tier in self.tiers if tier.name == device), self.tier)

    def footprint(self, config: EngineConfig) -> Footprint:
        """Never less on the fast tier than a trial of the same configuration was seen to use."""
        raw = self._raw(config)
        learnt = self.stock if config.cache is None else self.plugin
        buffers = learnt.correct(raw.parts) if any(raw.parts) else 0
        more = tuple(known + (self.stock.correct(parts) if any(parts) else 0) for known, parts in self._further(config))
        return Footprint(raw.known_bytes + buffers, buffers, raw.host_bytes, more)

    def observe(self, config: EngineConfig, fast_bytes: int) -> "MemoryModel":
        """The model after a trial of `config` was seen to use `fast_bytes` of device memory."""
        raw = self._raw(config)
        if not any(raw.parts) or fast_bytes <= 0:
            return self
        measured = fast_bytes - raw.known_bytes
        if config.cache is None:
            return replace(self, stock=self.stock.add(raw.parts, measured))
        return replace(self, plugin=self.plugin.add(raw.parts, measured))

    def slot_bytes(self, config: EngineConfig) -> int:
        """Fast-tier bytes of one slot in every layer whose experts this configuration leaves in RAM."""
        return sum(layer.expert_bytes for layer in self._slotted(config))

    def _slotted(self, config: EngineConfig) -> list[Layer]:
        return [layer for layer in self.model.layers if layer.expert_bytes and self.experts_in_ram(config, layer)]

    def slots_of(self, config: EngineConfig) -> int:
        """Slots a layer; of a budget that is spread unevenly the mean."""
        knobs = config.cache
        if knobs is None:
            return 0
        return min(self.model.n_expert, knobs.slots or knobs.budget_bytes // max(1, self.slot_bytes(config)))

    def slot_room(self, config: EngineConfig) -> int:
        """Bytes of the fast tier that everything else and the reserve leave for slots, which `config` must not have."""
        one = self.slot_bytes(config)
        if one == 0 or config.cache is None:
            return 0
        # Slots come with buffers of their own, which a cache that is off does not have.
        with_one = replace(config, cache=replace(config.cache, slots=1))
        left = self._limit_bytes(config) - self.footprint(with_one).fast_bytes + one
        return max(0, min(left, one * self.model.n_expert))

    def slots_that_fit(self, config: EngineConfig) -> int:
        """Slots a layer in what everything else leaves of the fast tier; `config` must have its slots at 0."""
        room = self.slot_room(config)
        return room // self.slot_bytes(config) if room else 0

    def excess_bytes(self, config: EngineConfig) -> tuple[int, int]:
        """Bytes too many on the fast tier or on the worst of several devices, and in RAM; 0 or less fits."""
        footprint = self.footprint(config)
        fast = footprint.fast_bytes - self._limit_bytes(config) if footprint.fast_bytes else 0
        for name, used in zip(config.more_devices, footprint.more_bytes, strict=True):
            tier = self.tier_of(name)
            fast = max(fast, used - (tier.limit_bytes if tier is not None else 0)) if used else fast
        return fast, footprint.host_bytes - self.host_limit_bytes

    def _limit_bytes(self, config: EngineConfig) -> int:
        tier = self.tier_of(config.device)
        return tier.limit_under(config.cache.reserve_bytes if config.cache else None) if tier is not None else 0

    def fits_fast(self, config: EngineConfig) -> bool:
        """Whether the fast tier holds the configuration."""
        return self.excess_bytes(config)[0] <= 0

    def experts_in_ram(self, config: EngineConfig, layer: Layer) -> bool:
        """Whether this configuration leaves the layer's experts to the CPU, or to slots."""
        return layer.index < config.ram_expert_layers or not self.on_device(config, layer.index)

    def on_device(self, config: EngineConfig, index: int) -> bool:
        """Whether a layer's dense part and its KV cache lie on the fast tier."""
        return config.gpu_layers > 0 and index >= self.model.n_layers + 1 - config.gpu_layers

    def _raw(self, config: EngineConfig) -> _Raw:
        """Without the further devices."""
        model = self.model
        weights, cache = self.placed_bytes(config)
        slots = _slot_total(config, self.slot_bytes(config)) if config.cache else 0
        slots += _SLOTS_PADDING_BYTES * len(self._slotted(config)) if slots else 0
        all_context = sum(context_bytes(config, layer) for layer in model.layers)
        tied_copy = model.output_bytes if model.embedding_bytes == model.output_bytes else 0
        host = model.tensor_bytes - min(sum(weights), model.tensor_bytes) + all_context - sum(cache) + _PROCESS_BYTES
        host += (tied_copy if config.gpu_layers > 0 else 0) + sum(self._buffer_parts(config.on_cpu))
        tier = self.tier_of(config.device)
        if tier is not None and tier.on_host:
            host += slots
        if config.cache is not None and config.cache.on and config.cache.repack:
            # A second copy of them in the packed layout.
            host += sum(layer.routed_bytes for layer in model.layers if self.experts_in_ram(config, layer))
        if config.device is None:
            return _Raw(0, (), host)
        parts = (*self._buffer_parts(config), self._streaming_bytes(config)) if config.gpu_layers > 0 else ()
        return _Raw(weights[0] + cache[0] + slots, parts, host)

    def _further(self, config: EngineConfig) -> list[tuple[int, Parts]]:
        """Known bytes and parts of the buffers of each further device; none where it holds nothing."""
        if not config.more_devices:
            return []
        weights, cache = self.placed_bytes(config)
        # Only where a device's own layers have their experts in RAM are these copied to it.
        by_device = self._layers_by_device(config)
        without = *self._buffer_parts(replace(config, ram_expert_layers=0, gpu_layers=self.model.n_layers + 1)), 0
        most = *self._buffer_parts(config), 0
        return [
            (w + c, () if w == 0 else most if any(self.experts_in_ram(config, layer) for layer in held) else without)
            for w, c, held in zip(weights[1:], cache[1:], by_device[1:], strict=True)
        ]

    def placed_bytes(self, config: EngineConfig) -> tuple[list[int], list[int]]:
        """Weights and KV cache on each of the configuration's devices."""
        by_device = self._layers_by_device(config)
        weights = [
            sum(layer.dense_bytes + (0 if self.experts_in_ram(config, layer) else layer.routed_bytes) for layer in held)
            for held in by_device
        ]
        if config.gpu_layers > 0:
            output_at = self._device_index(config, self._shares(config), self.model.n_layers)
            weights[output_at] += self.model.output_bytes + self.model.other_bytes
        return weights, [sum(context_bytes(config, layer) for layer in held) for held in by_device]

    def _layers_by_device(self, config: EngineConfig) -> list[list[Layer]]:
        shares = self._shares(config)
        held: list[list[Layer]] = [[] for _ in shares]
        for layer in self.model.layers:
            if self.on_device(config, layer.index):
                held[self._device_index(config, shares, layer.index)].append(layer)
        return held

    def _shares(self, config: EngineConfig) -> list[float]:
        """Of the layers on devices, where each device's end, from 0 to 1 (llama.cpp's `splits`)."""
        if not config.more_devices:
            return [1.0]
        names = (config.device, *config.more_devices)
        parts: list[int] = [*config.tensor_split] or [
            tier.limit_bytes if (tier := self.tier_of(n)) else 0 for n in names
        ]
        ends = list(accumulate(parts))
        return [end / max(1, ends[-1]) for end in ends]

    def _device_index(self, config: EngineConfig, shares: list[float], index: int) -> int:
        """Which of the configuration's devices holds the layer; the output layer's index is n_layers."""
        placed = min(config.gpu_layers, self.model.n_layers + 1)
        return min(bisect_right(shares, (index - (self.model.n_layers + 1 - placed)) / placed), len(shares) - 1)

    def _streaming_bytes(self, config: EngineConfig) -> int:
        """What the plugin takes on the device besides slots: staging, rows of pairs, its own part of the graph."""
        tier = self.tier_of(config.device)
        if config.cache is None or not config.cache.on or tier is None or tier.on_host:
            return 0
        if config.cache.prefill is PromptWay.SCHEDULER:
            return 0
        model = self.model
        largest_expert = max((layer.expert_bytes for layer in model.layers), default=0)
        staging = max(int(tier.total_bytes * _STAGING_SHARE), largest_expert + _STAGING_PADDING_BYTES)
        pairs = config.n_ubatch * model.n_expert_used
        row = model.n_embd * 4
        return 2 * staging + 3 * min(pairs, _STREAMED_PAIRS) * row + pairs * row

    def _buffer_parts(self, config: EngineConfig) -> Parts:
        """An upper estimate of one compute graph's buffers, checked against llama.cpp, also without flash attention.

        The largest step, the mask, attention scores, a KV cache that comes from RAM, and experts that do.
        """
        model, batch = self.model, config.n_ubatch
        stream = batch * model.n_embd * 4
        logits = batch * model.n_vocab * 4
        in_ram = [layer for layer in model.layers if self.experts_in_ram(config, layer)]
        routed = stream * model.n_expert_used * 2 if len(in_ram) < model.n_layers or not config.gpu_layers else 0
        mask = batch * config.n_ctx * 4
        scores = mask * model.n_head if config.flash_attn is FlashAttention.OFF else 0
        elsewhere = [layer for layer in model.layers if config.gpu_layers and not self.on_device(config, layer.index)]
        visiting = max((context_bytes(config, layer) for layer in elsewhere), default=0)
        staged = config.gpu_layers > 0 and batch >= STAGED_BATCH
        copied = max((layer.routed_bytes for layer in in_ram), default=0) if staged else 0
        return max(logits + 2 * stream, 4 * stream + routed), mask, scores, visiting, copied


def _slot_total(config: EngineConfig, slot_bytes: int) -> int:
    knobs = config.cache
    return 0 if knobs is None else knobs.slots * slot_bytes or knobs.budget_bytes


def context_bytes(config: EngineConfig, layer: Layer) -> int:
    """A layer's share of the KV cache, its recurrent state included."""
    k_bits, v_bits = KV_BITS_PER_VALUE[config.type_k], KV_BITS_PER_VALUE[config.type_v]
    positions = -(-config.n_ctx // 256) * 256
    return int(positions * (layer.k_values * k_bits + layer.v_values * v_bits) / 8) + layer.state_values * 4


def memory_of(model: Model, machine: Machine, devices: str | None) -> MemoryModel:
    """What is known before any trial; `devices` as `choose_tiers` takes them."""
    tiers = choose_tiers(machine, devices)
    return MemoryModel(model, next(iter(tiers), None), machine.memory.available_bytes, more_tiers=tiers[1:])


def require_memory(memory: MemoryModel, config: EngineConfig, allow_overcommit: bool) -> None:
    """MoetuneError (MEMORY) when the model, its context and buffers exceed RAM and fast tier together."""
    needed = memory.footprint(config.on_cpu).host_bytes
    on_device = sum(tier.limit_bytes for tier in memory.tiers if not tier.on_host)
    there = memory.host_limit_bytes + on_device
    if needed <= there or allow_overcommit:
        return
    raise MoetuneError(
        f"The model needs about {needed / MIB:,.0f} MiB with a context of {config.n_ctx:,} tokens; "
        f"{memory.host_limit_bytes / MIB:,.0f} MiB of RAM and {on_device / MIB:,.0f} MiB of fast tier are free.",
        "Free memory, use a smaller quantisation or a shorter context (--ctx), "
        "or allow the search to run from disk (--allow-overcommit).",
        ExitCode.MEMORY,
    )
