"""Seconds a token of generation takes: layer after layer, each as long as the slower of its two sides."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import binom

from moetune.autotune.cost_figures import REPACK_GAIN, Figures, Resource
from moetune.autotune.memory import MemoryModel
from moetune.engine.config import KV_BITS_PER_VALUE, EngineConfig
from moetune.engine.model import Layer, Model

# Operations of a layer in ggml's graph, counted by the emulated device: 38 in qwen3moe with 8 experts a token, of which
# four are the routed products and one for each expert weighs or adds its result; in qwen35moe 53 where it is recurrent
# and uses 2. Of nine other architectures the median is that of qwen3moe, the extremes 22 and 49 instead of 26.
_ATTENDING_NODES = 26
_RECURRENT_NODES = 47
ROUTED_NODES = 4
OUTPUT_NODES = 5
# llama.cpp pads the part of the cache that attention reads to whole blocks of so many positions.
_KV_BLOCK = 256

Seconds = Mapping[Resource, float]


@dataclass(frozen=True)
class Decode:
    """One token with `position` tokens before it. hit_rate: 0 where there are no slots."""

    memory: MemoryModel
    figures: Figures
    config: EngineConfig
    hit_rate: float
    position: int

    def seconds(self) -> Seconds:
        """What a token waits for, by resource; the sum is its time."""
        model, figures = self.memory.model, self.figures
        spent = defaultdict[Resource, float](float, {Resource.FIXED: figures.token_s})
        for layer, count in alike(self.memory, self.config):
            add(spent, self._dense(layer), count)
            if layer.expert_bytes:
                add(spent, self._routed(layer), count)
        on_device = self.config.gpu_layers > 0
        add(spent, self._read(model.output_bytes, OUTPUT_NODES, on_device=on_device))
        return spent

    def _dense(self, layer: Layer) -> Seconds:
        config, model = self.config, self.memory.model
        k_bits, v_bits = KV_BITS_PER_VALUE[config.type_k], KV_BITS_PER_VALUE[config.type_v]
        positions = min(config.n_ctx, -(-(self.position + 1) // _KV_BLOCK) * _KV_BLOCK)
        read = layer.dense_bytes + positions * (layer.k_values * k_bits + layer.v_values * v_bits) / 8
        nodes = dense_nodes(layer, model)
        # A recurrent state is read and written.
        on_device = self.memory.on_device(config, layer.index)
        return self._read(read + 2 * 4 * layer.state_values, nodes, on_device=on_device)

    def _read(self, n_bytes: float, nodes: int, *, on_device: bool) -> Seconds:
        figures = self.figures
        if on_device:
            return {Resource.DEVICE: n_bytes / figures.device, Resource.FIXED: nodes * figures.node_s}
        host = figures.host.rate(self.config.n_threads, REPACK_GAIN if self.config.repack else 1.0)
        return {Resource.RAM: n_bytes / host, Resource.FIXED: nodes * figures.host_node_s}

    def _routed(self, layer: Layer) -> Seconds:
        """The products with experts, their hand-over included."""
        used, figures = self.memory.model.n_expert_used, self.figures
        if not self.memory.experts_in_ram(self.config, layer):
            return {
                Resource.DEVICE: used * layer.expert_bytes / figures.device,
                Resource.FIXED: ROUTED_NODES * figures.node_s,
            }
        if not self.config.has_slots:
            return self._missed(layer, used)
        spent = defaultdict[Resource, float](float, {Resource.FIXED: figures.cached_s})
        for misses, chance in enumerate(_chances(used, round(1 - self.hit_rate, 6))):
            hot = self._hit(layer, used - misses)
            cold = self._missed(layer, misses)
            slower = max(hot, cold, key=lambda side: sum(side.values()))
            add(spent, slower, chance)
        return spent

    def _hit(self, layer: Layer, pairs: int) -> Seconds:
        """Pairs on the device. The host must still be told which experts they were, and be waited for."""
        figures = self.figures
        return {
            Resource.DEVICE: pairs * layer.expert_bytes / figures.device,
            Resource.FIXED: (ROUTED_NODES * figures.node_s if pairs else 0.0) + figures.join_s,
        }

    def _missed(self, layer: Layer, pairs: int) -> Seconds:
        """Pairs on the CPU; where the layer lies on the device, their input comes down and their rows go up."""
        figures, config = self.figures, self.config
        gain = REPACK_GAIN if config.repack and config.cache is None else 1.0
        rate = figures.host_experts.rate(config.n_threads, gain)
        away = self.memory.on_device(config, layer.index) or config.has_slots
        row = self.memory.model.n_embd * 4
        return {
            Resource.RAM: pairs * layer.expert_bytes / rate,
            Resource.FIXED: (ROUTED_NODES * figures.host_node_s if pairs else 0.0) + (figures.join_s if away else 0.0),
            Resource.LINK: (pairs + 1) * row / figures.link if away and pairs else 0.0,
        }


def dense_nodes(layer: Layer, model: Model) -> int:
    """Operations of a layer but for its products with routed experts."""
    own = _RECURRENT_NODES if layer.state_values else _ATTENDING_NODES
    return own + (model.n_expert_used if layer.expert_bytes else 0)


def add(spent: defaultdict[Resource, float], more: Seconds, times: float = 1.0) -> None:
    """Count seconds in, so many times."""
    for resource, seconds in more.items():
        spent[resource] += times * seconds


def alike(memory: MemoryModel, config: EngineConfig) -> Iterable[tuple[Layer, int]]:
    """One layer of each sort that costs the same, and how many there are of it."""
    sorts: dict[tuple[object, ...], list[Layer]] = {}
    for layer in memory.model.layers:
        place = (memory.on_device(config, layer.index), memory.experts_in_ram(config, layer))
        sizes = (layer.expert_bytes, layer.dense_bytes, layer.k_values, layer.v_values, layer.state_values)
        sorts.setdefault((*place, *sizes), []).append(layer)
    return [(of_sort[0], len(of_sort)) for of_sort in sorts.values()]


@lru_cache(maxsize=4096)
def _chances(pairs: int, miss_rate: float) -> tuple[float, ...]:
    """Of 0, 1, ... `pairs` misses in one layer, each pair missing by itself.

    Held against nine recorded cases (benchmarks/results/engine.json): at 90 % hits 43 % of the layers had no miss.
    """
    return tuple(binom.pmf(range(pairs + 1), pairs, miss_rate).tolist())
