"""Predicts speed and memory of any configuration from the model's file, the machine's figures and its routing."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log
from statistics import median

from moetune.autotune.cost_correction import Correction
from moetune.autotune.cost_decode import Decode, add
from moetune.autotune.cost_figures import Figures, Resource, figures_of
from moetune.autotune.cost_hits import DEFAULT_SKEW, HitCurve, curve_from_skew
from moetune.autotune.cost_prompt import Prompt
from moetune.autotune.memory import MemoryModel
from moetune.autotune.trace import RequestShape
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Measurement
from moetune.engine.model import Model
from moetune.hardware.machine import Machine

_TWICE = 2.0


@dataclass(frozen=True)
class Remedy:
    """What twice as much of one thing would do: the turn's seconds then, and what share of them it would save."""

    resource: Resource
    turn_s: float
    saved: float


@dataclass(frozen=True)
class Prediction:
    """One configuration, predicted. hit_rate: None without slots. fits: on the fast tiers and in RAM. fast_bytes: of
    all devices together.

    bound: the thing of which twice as much would save most. waits: shares of a turn, by what it waits for.
    remedies: all that would save anything worth naming, best first.
    """

    pp_tps: float
    tg_tps: float
    turn_s: float
    hit_rate: float | None
    fast_bytes: int
    host_bytes: int
    fits: bool
    bound: Resource
    waits: Mapping[Resource, float]
    remedies: tuple[Remedy, ...]

    @property
    def reason(self) -> str:
        """In a sentence what a turn waits for, and what binds it."""
        longest = max(self.waits, key=lambda resource: self.waits[resource])
        waits = f"{self.waits[longest]:.0%} of a turn is {_WAITING[longest]}"
        if self.bound is longest:
            return f"{self.bound} binds: {waits}"
        return f"{self.bound} binds: {waits}, and twice as much {self.bound} would save {self.remedies[0].saved:.0%}"


_WAITING = {
    Resource.DEVICE: "reading the device's memory",
    Resource.RAM: "reading RAM",
    Resource.LINK: "copying over the link",
    Resource.FIXED: "fixed costs of operations and hand-overs",
    Resource.COMPUTE: "arithmetic on prompts",
}
_NOTABLE_SAVING = 0.01
_FULL = 0.75


@dataclass(frozen=True)
class CostModel:
    """All that predictions rest on. shape: the request that a turn is. generation, prompts: learnt from trials."""

    memory: MemoryModel
    figures: Figures
    hits: HitCurve
    shape: RequestShape
    generation: Correction = field(default=Correction())
    prompts: Correction = field(default=Correction())
    shifts: tuple[float, ...] = ()

    def predict(self, config: EngineConfig) -> Prediction:
        """Speeds, memory, and what would change them."""
        prompt, token = self._parts(config)
        turn_s = self._turn_s(prompt, token)
        remedies = self._remedies(config, turn_s)
        waits = defaultdict[Resource, float](float, prompt)
        add(waits, token, self.shape.reply_tokens)
        footprint = self.memory.footprint(config)
        fast_excess, host_excess = self.memory.excess_bytes(config)
        longest = max(waits, key=lambda resource: waits[resource])
        return Prediction(
            pp_tps=self.shape.prompt_tokens / sum(prompt.values()),
            tg_tps=1 / sum(token.values()),
            turn_s=turn_s,
            hit_rate=self._hit_rate(config) if config.has_slots else None,
            fast_bytes=footprint.fast_bytes + sum(footprint.more_bytes),
            host_bytes=footprint.host_bytes,
            fits=fast_excess <= 0 and host_excess <= 0,
            bound=remedies[0].resource if remedies else longest,
            waits={resource: seconds / turn_s for resource, seconds in waits.items()},
            remedies=remedies,
        )

    def turn_s(self, config: EngineConfig) -> float:
        """Seconds of a turn alone: what configurations are ranked by."""
        return self.times_s(config)[0]

    def times_s(self, config: EngineConfig) -> tuple[float, float]:
        """Seconds of a turn, and of one decoded token in the middle of the reply."""
        prompt, token = self._parts(config)
        return self._turn_s(prompt, token), sum(token.values())

    def observe(self, config: EngineConfig, measured: Measurement) -> "CostModel":
        """The model after a trial: first its hit rates, then its speeds as they would be with the measured hit rate."""
        better = self
        rate = measured.counters.hit_rate if measured.counters and config.has_slots else None
        if rate is not None and config.cache is not None and not _guarded_off(measured):
            shifts = (*self.shifts, replace(self.hits, shift=0.0).shift_to(config.cache.slots, rate))
            better = replace(self, shifts=shifts, hits=replace(self.hits, shift=median(shifts)))
        prompt, token = replace(self, generation=Correction(), prompts=Correction())._parts(config, rate)
        token_log = log(1 / measured.tg_tps / sum(token.values()))
        prompt_log = log(self.shape.prompt_tokens / measured.pp_tps / sum(prompt.values()))
        return replace(
            better,
            generation=self.generation.add(config, token_log),
            prompts=self.prompts.add(config, prompt_log),
        )

    def _parts(
        self, config: EngineConfig, hit_rate: float | None = None
    ) -> tuple[Mapping[Resource, float], Mapping[Resource, float]]:
        """Seconds by resource of the whole prompt, and of one token in the middle of the reply."""
        shape = self.shape
        rate = self._hit_rate(config) if hit_rate is None else hit_rate
        prompt = Prompt(
            self.memory, self.figures, config, self.hits, rate, shape.prompt_tokens, shape.depth_tokens
        ).seconds()
        position = shape.depth_tokens + shape.prompt_tokens + shape.reply_tokens // 2
        token = Decode(self.memory, self.figures, config, rate, position).seconds()
        return _scaled(prompt, self.prompts.factor(config)), _scaled(token, self.generation.factor(config))

    def _turn_s(self, prompt: Mapping[Resource, float], token: Mapping[Resource, float]) -> float:
        return sum(prompt.values()) + self.shape.reply_tokens * sum(token.values())

    def _hit_rate(self, config: EngineConfig) -> float:
        return self.hits.rate(self.memory.slots_of(config)) if config.has_slots else 0.0

    def _remedies(self, config: EngineConfig, turn_s: float) -> tuple[Remedy, ...]:
        found = []
        for resource in Resource:
            if resource is Resource.VRAM:
                better_s = self.turn_s(self._with_twice_the_vram(config))
            else:
                better_s = replace(self, figures=self.figures.better(resource, _TWICE)).turn_s(config)
            found.append(Remedy(resource, better_s, 1 - better_s / turn_s))
        worth = [remedy for remedy in found if remedy.saved > _NOTABLE_SAVING]
        return tuple(sorted(worth, key=lambda remedy: -remedy.saved))

    def _with_twice_the_vram(self, config: EngineConfig) -> EngineConfig:
        """What the configuration would do with as much device memory again: more slots, or more layers.

        Itself where it leaves much of the memory there is: it is then not the memory that it lacks.
        """
        memory, tier, model = self.memory, self.memory.tier, self.memory.model
        if tier is None or tier.on_host or memory.footprint(config).fast_bytes < _FULL * tier.limit_bytes:
            return config
        room = tier.total_bytes
        if config.cache is not None and config.has_slots:
            more = room // max(1, memory.slot_bytes(replace(config, cache=None)))
            return replace(config, cache=replace(config.cache, slots=min(model.n_expert, config.cache.slots + more)))
        if config.gpu_layers > model.n_layers:
            layer_bytes = max((layer.routed_bytes for layer in model.layers), default=0)
            fewer = room // max(1, layer_bytes)
            return replace(config, ram_expert_layers=max(0, config.ram_expert_layers - fewer))
        layer_bytes = max(layer.routed_bytes + layer.dense_bytes for layer in model.layers)
        more = config.gpu_layers + room // max(1, layer_bytes)
        experts = max(0, model.n_layers - more) if config.ram_expert_layers else 0
        return replace(config, device=tier.name, gpu_layers=min(model.n_layers + 1, more), ram_expert_layers=experts)


def cost_model(
    model: Model, machine: Machine, memory: MemoryModel, shape: RequestShape, hits: HitCurve | None = None
) -> CostModel:
    """The model of `model` on `machine`. hits: as recorded or stated; by default a documented assumption."""
    known = hits or curve_from_skew(model.n_expert, model.n_expert_used, DEFAULT_SKEW)
    return CostModel(memory, figures_of(machine, memory.tier), known, shape)


def _scaled(seconds: Mapping[Resource, float], factor: float) -> Mapping[Resource, float]:
    return {resource: spent * factor for resource, spent in seconds.items()}


def _guarded_off(measured: Measurement) -> bool:
    return measured.counters is not None and measured.counters.layers_off > 0
