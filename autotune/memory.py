"""Predicts the memory of a configuration before anything is launched, and learns from what trials measured.

Placement follows llama.cpp: of n layers, `gpu_layers` = g > 0 puts the output layer and the last g - 1 repeating
layers on the device (layer i when i >= n + 1 - g), with their share of the KV cache; the token embedding stays in RAM.
"""

from dataclasses import dataclass, replace

from moetune.autotune.calibration import Calibration
from moetune.autotune.tier import FastTier
from moetune.engine.config import KV_BITS_PER_VALUE, EngineConfig
from moetune.engine.model import Layer, Model
from moetune.errors import ExitCode, MoetuneError

MIB = 1 << 20
_PROCESS_BYTES = 160 * MIB
# A slot's matrices are padded to the device's alignment: gate, up, down and their biases, 256 bytes each.
_SLOT_PADDING_BYTES = 6 * 256
# The engine streams experts for prompts through two buffers of this share of the device, and at least one expert each,
# and computes so many (token, expert) pairs at a time.
_STAGING_SHARE = 1 / 128
_STAGING_PADDING_BYTES = 7 * 4096
_STREAMED_PAIRS = 512
STAGED_BATCH = 32  # from so many tokens on, the scheduler copies RAM experts to the device, cache or not


@dataclass(frozen=True)
class Footprint:
    """Predicted bytes: on the fast tier, of which `guessed_bytes` are estimated buffers, and in RAM."""

    fast_bytes: int
    guessed_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class MemoryModel:
    """stock, plugin: what trials without and with the plugin taught about buffers; the two lay them out differently."""

    model: Model
    tier: FastTier | None
    host_limit_bytes: int
    stock: Calibration = Calibration()
    plugin: Calibration = Calibration()

    @property
    def fast_limit_bytes(self) -> int:
        return self.tier.limit_bytes if self.tier else 0

    def footprint(self, config: EngineConfig) -> Footprint:
        """Never less on the fast tier than a trial of the same configuration was seen to use."""
        raw = self._raw(config)
        if raw.guessed_bytes == 0:
            return raw
        buffers = (self.stock if config.cache is None else self.plugin).correct(raw.guessed_bytes)
        return replace(raw, fast_bytes=raw.fast_bytes - raw.guessed_bytes + buffers, guessed_bytes=buffers)

    def observe(self, config: EngineConfig, fast_bytes: int) -> "MemoryModel":
        """The model after a trial of `config` was seen to use `fast_bytes` of device memory."""
        raw = self._raw(config)
        if raw.guessed_bytes == 0 or fast_bytes <= 0:
            return self
        measured = fast_bytes - (raw.fast_bytes - raw.guessed_bytes)
        if config.cache is None:
            return replace(self, stock=self.stock.add(raw.guessed_bytes, measured))
        return replace(self, plugin=self.plugin.add(raw.guessed_bytes, measured))

    def slot_bytes(self, config: EngineConfig) -> int:
        """Fast-tier bytes of one slot in every layer whose experts this configuration leaves in RAM."""
        layers = (layer for layer in self.model.layers if layer.expert_bytes and self.experts_in_ram(config, layer))
        return sum(layer.expert_bytes + _SLOT_PADDING_BYTES for layer in layers)

    def slots_that_fit(self, config: EngineConfig, share: float) -> int:
        """Slots a layer in `share` of the fast tier left by everything else; `config` must have its slots at 0."""
        one = self.slot_bytes(config)
        if one == 0 or config.cache is None:
            return 0
        # Slots come with buffers of their own, which a cache that is off does not have.
        with_one = replace(config, cache=replace(config.cache, slots=1))
        left = self.fast_limit_bytes - self.footprint(with_one).fast_bytes + one
        return max(0, min(self.model.n_expert, int(left * share) // one))

    def excess_bytes(self, config: EngineConfig) -> tuple[int, int]:
        """Bytes too many on the fast tier and in RAM; 0 or less fits."""
        footprint = self.footprint(config)
        fast = footprint.fast_bytes - self.fast_limit_bytes if footprint.fast_bytes else 0
        return fast, footprint.host_bytes - self.host_limit_bytes

    def fits_fast(self, config: EngineConfig) -> bool:
        """Whether the fast tier holds the configuration."""
        return self.excess_bytes(config)[0] <= 0

    def experts_in_ram(self, config: EngineConfig, layer: Layer) -> bool:
        """Whether this configuration leaves the layer's experts to the CPU, or to slots."""
        return layer.index < config.ram_expert_layers or not self.on_device(config, layer.index)

    def on_device(self, config: EngineConfig, index: int) -> bool:
        """Whether a layer's dense part and its KV cache lie on the fast tier."""
        return config.gpu_layers > 0 and index >= self.model.n_layers + 1 - config.gpu_layers

    def _raw(self, config: EngineConfig) -> Footprint:
        model = self.model
        weights = cache = 0
        for layer in model.layers:
            if self.on_device(config, layer.index):
                weights += layer.dense_bytes
                weights += 0 if self.experts_in_ram(config, layer) else layer.routed_bytes
                cache += context_bytes(config, layer)
        if config.gpu_layers > 0:
            weights += model.output_bytes + model.other_bytes
        slots = config.cache.slots * self.slot_bytes(replace(config, cache=None)) if config.cache else 0
        guessed = self._buffer_bytes(config) + self._streaming_bytes(config) if config.gpu_layers > 0 else 0
        all_context = sum(context_bytes(config, layer) for layer in model.layers)
        tied_copy = model.output_bytes if model.embedding_bytes == model.output_bytes else 0
        host = model.tensor_bytes - min(weights, model.tensor_bytes) + all_context - cache + _PROCESS_BYTES
        host += (tied_copy if config.gpu_layers > 0 else 0) + self._buffer_bytes(replace(config, gpu_layers=0))
        if self.tier is not None and self.tier.on_host:
            host += slots
        fast = weights + cache + slots + guessed if config.device is not None else 0
        return Footprint(fast, guessed, host)

    def _streaming_bytes(self, config: EngineConfig) -> int:
        """What the plugin takes on the device besides slots: staging, rows of pairs, its own part of the graph."""
        if config.cache is None or not config.cache.on or self.tier is None or self.tier.on_host:
            return 0
        model = self.model
        largest_expert = max((layer.expert_bytes for layer in model.layers), default=0)
        staging = max(int(self.tier.total_bytes * _STAGING_SHARE), largest_expert + _STAGING_PADDING_BYTES)
        pairs = config.n_ubatch * model.n_expert_used
        row = model.n_embd * 4
        return 2 * staging + 3 * min(pairs, _STREAMED_PAIRS) * row + pairs * row

    def _buffer_bytes(self, config: EngineConfig) -> int:
        """An upper estimate of one compute graph's buffers, checked against llama.cpp with flash attention."""
        model, batch = self.model, config.n_ubatch
        stream = batch * model.n_embd * 4
        logits = batch * model.n_vocab * 4
        in_ram = [layer for layer in model.layers if self.experts_in_ram(config, layer)]
        routed = stream * model.n_expert_used * 2 if len(in_ram) < model.n_layers or not config.gpu_layers else 0
        mask = batch * config.n_ctx * 4
        elsewhere = [layer for layer in model.layers if config.gpu_layers and not self.on_device(config, layer.index)]
        visiting = max((context_bytes(config, layer) for layer in elsewhere), default=0)
        staged = config.gpu_layers > 0 and batch >= STAGED_BATCH
        copied = max((layer.routed_bytes for layer in in_ram), default=0) if staged else 0
        return max(logits + 2 * stream, 4 * stream + routed) + mask + visiting + copied


def context_bytes(config: EngineConfig, layer: Layer) -> int:
    """A layer's share of the KV cache, its recurrent state included."""
    k_bits, v_bits = KV_BITS_PER_VALUE[config.type_k], KV_BITS_PER_VALUE[config.type_v]
    positions = -(-config.n_ctx // 256) * 256
    return int(positions * (layer.k_values * k_bits + layer.v_values * v_bits) / 8) + layer.state_values * 4


def require_memory(memory: MemoryModel, config: EngineConfig, allow_overcommit: bool) -> None:
    """MoetuneError (MEMORY) when the model, its context and buffers exceed RAM and fast tier together."""
    needed = memory.footprint(replace(config, device=None, gpu_layers=0, cache=None)).host_bytes
    on_device = memory.fast_limit_bytes if memory.tier is not None and not memory.tier.on_host else 0
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
