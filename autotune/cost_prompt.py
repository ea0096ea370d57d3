"""Seconds a prompt takes: batch after batch, experts in RAM streamed to the device or computed where they lie."""

from collections import defaultdict
from dataclasses import dataclass

from moetune.autotune.cost_decode import ROUTED_NODES, Seconds, add, alike, dense_nodes
from moetune.autotune.cost_figures import Figures, Resource
from moetune.autotune.cost_hits import HitCurve
from moetune.autotune.memory import STAGED_BATCH, MemoryModel
from moetune.engine.config import EngineConfig, PromptWay
from moetune.engine.model import Layer

# Of the packed layout over the plain one for prompts of Q4_0 weights with AVX-512: + 70 % was measured.
_REPACK_GAIN = 1.7
# Values that a layer's operations write and read again for a token, in widths of the residual: about 20 outside the
# routed part; in it six for each pair, and six of the expert's own width. Counted in llama.cpp's graph of qwen3moe.
_DENSE_WIDTHS = 20
_ROUTED_WIDTHS = 6


@dataclass(frozen=True)
class Prompt:
    """`tokens` tokens after `depth` others."""

    memory: MemoryModel
    figures: Figures
    config: EngineConfig
    hits: HitCurve
    hit_rate: float
    tokens: int
    depth: int

    def seconds(self) -> Seconds:
        """What the prompt waits for, by resource; the sum is its time."""
        spent = defaultdict[Resource, float](float)
        size = max(1, min(self.config.n_ubatch, self.tokens))
        whole, rest = divmod(self.tokens, size)
        for batch, times in ((size, whole), (rest, 1 if rest else 0)):
            if times:
                add(spent, self._batch(batch), times)
        return spent

    def _batch(self, batch: int) -> Seconds:
        model = self.memory.model
        spent = defaultdict[Resource, float](float, {Resource.FIXED: self.figures.token_s})
        for layer, count in alike(self.memory, self.config):
            add(spent, self._dense(layer, batch), count)
            if layer.expert_bytes:
                add(spent, self._routed(layer, batch), count)
        # Only the last token of a prompt needs the output layer.
        on_device = self.config.gpu_layers > 0
        rate = self.figures.device if on_device else self.figures.host.rate(self.config.batch_threads)
        spent[Resource.DEVICE if on_device else Resource.RAM] += model.output_bytes / rate
        return spent

    def _dense(self, layer: Layer, batch: int) -> Seconds:
        model, on_device = self.memory.model, self.memory.on_device(self.config, layer.index)
        values = batch * (self.depth + self.tokens / 2) * (layer.k_values + layer.v_values)
        groups = max(1, model.n_head * layer.head_dim_k // max(1, layer.k_values)) if layer.k_values else 1
        operations = 2 * batch * layer.dense_weights + 2 * values * groups
        moved = layer.dense_bytes + batch * _DENSE_WIDTHS * model.n_embd * 4
        nodes = dense_nodes(layer, model)
        if on_device:
            return self._on_device(operations, moved, nodes)
        if self._offloads(batch):
            return {**self._on_device(operations, moved, nodes), Resource.LINK: layer.dense_bytes / self.figures.link}
        return self._on_host(operations, moved, nodes)

    def _routed(self, layer: Layer, batch: int) -> Seconds:
        model, config = self.memory.model, self.config
        pairs = batch * model.n_expert_used
        operations = 2.0 * pairs * layer.expert_weights
        width = layer.expert_weights / (3 * model.n_embd)
        rows = pairs * _ROUTED_WIDTHS * (model.n_embd + width) * 4
        needed = min(self.hits.distinct(batch), model.n_expert) * layer.expert_bytes
        device = self._on_device(operations, needed + rows, ROUTED_NODES)
        if not self.memory.experts_in_ram(config, layer):
            return device
        host = self._on_host(operations, needed + rows, ROUTED_NODES)
        if config.has_slots:
            experts = needed / self.figures.host_experts.rate(config.batch_threads)
            host = max(host, {Resource.RAM: experts}, key=lambda side: sum(side.values()))
            slots = self.memory.slots_of(config)
            return self._cached(device, host, needed * (1 - min(1.0, slots / max(1, model.n_expert))), batch)
        if not self._offloads(batch):
            return host
        # llama.cpp's scheduler brings the experts a batch needs, and then computes.
        return {**device, Resource.LINK: needed / self.figures.link}

    def _cached(self, device: Seconds, host: Seconds, absent: float, batch: int) -> Seconds:
        """Streamed while the device computes, or on the CPU; left alone the engine takes what it found faster."""
        way = self.config.cache.prefill if self.config.cache else PromptWay.AUTO
        link = {Resource.LINK: absent / self.figures.link}
        streamed = max(link, device, key=lambda side: sum(side.values()))
        if way is PromptWay.STREAM:
            return streamed
        if way is PromptWay.COLD or batch < STAGED_BATCH:
            return host
        return min(streamed, host, key=lambda side: sum(side.values()))

    def _offloads(self, batch: int) -> bool:
        """Whether llama.cpp brings weights out of RAM to the device for such a batch."""
        tier = self.memory.tier
        return self.config.device is not None and tier is not None and not tier.on_host and batch >= STAGED_BATCH

    def _on_device(self, operations: float, moved: float, nodes: int) -> Seconds:
        figures = self.figures
        compute, memory = operations / figures.device_ops, moved / figures.device
        bound = {Resource.COMPUTE: compute} if compute > memory else {Resource.DEVICE: memory}
        return {**bound, Resource.FIXED: nodes * figures.node_s}

    def _on_host(self, operations: float, moved: float, nodes: int) -> Seconds:
        figures, config = self.figures, self.config
        gain = _REPACK_GAIN if config.repack and config.cache is None else 1.0
        compute = operations / (figures.host_ops * config.batch_threads * gain)
        memory = moved / figures.host.rate(config.batch_threads, gain)
        bound = {Resource.COMPUTE: compute} if compute > memory else {Resource.RAM: memory}
        return {**bound, Resource.FIXED: nodes * figures.host_node_s}
