"""A `Runner` with a landscape that is known exactly, so that a whole search runs without a clock or an engine."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from moetune.autotune.memory import MemoryModel
from moetune.engine.config import EngineConfig, KvType
from moetune.engine.measurement import CacheCounters, Failed, FailureReason, Measurement, Trace
from moetune.engine.passage import Passage, TokenScores

Interruption = Callable[[int], None]


@dataclass(frozen=True)
class Landscape:
    """Seconds a token of each thing; what the cache gives and costs; and where it breaks.

    hit_gain: share of the RAM-expert time that slots of all experts would save. plugin_cost: what the loaded plugin
    multiplies the RAM-expert time by. true_buffers: how many times the estimated buffers are really used.
    kld, same_top: what quantised KV types do to every scored token, and on which share of them the top token stays.
    quantised_kv_gain: how many times as fast they make everything.
    """

    dense_s: float = 0.004
    ram_expert_layer_s: float = 0.004
    device_expert_layer_s: float = 0.0004
    best_threads: int = 4
    hit_gain: float = 0.9
    plugin_cost: float = 1.05
    noise: float = 0.0
    true_buffers: float = 1.0
    device_bytes: int = 1 << 62
    flat_s: float | None = None
    kld: Callable[[EngineConfig], float] = lambda config: 1e-4
    same_top: Callable[[EngineConfig], float] = lambda config: 0.999
    quantised_kv_gain: float = 1.0
    broken: Callable[[EngineConfig], FailureReason | None] = lambda config: None


@dataclass
class FakeRunner:
    """Measures by formula. `launched` keeps every configuration it was given; `before` may raise, like Ctrl-C.

    spent_s: what a clock on the wall would have counted so far.
    """

    landscape: Landscape
    memory: MemoryModel
    seed: int = 0
    before: Interruption = lambda calls: None
    launched: list[EngineConfig] = field(default_factory=list)
    time_limits_s: list[float] = field(default_factory=list)
    scored: list[tuple[EngineConfig, tuple[EngineConfig, ...], Passage]] = field(default_factory=list)
    closed: bool = False
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(ord(c) % 97 for c in text)

    def close(self) -> None:
        self.closed = True

    def score(
        self, base: EngineConfig, others: tuple[EngineConfig, ...], passage: Passage, *, time_limit_s: float
    ) -> tuple[TokenScores, ...] | Failed:
        self.scored.append((base, others, passage))
        reason = next(filter(None, map(self.landscape.broken, (base, *others))), None)
        if reason is not None:
            return Failed(reason, "as the landscape says")
        n = len(passage.tokens) // passage.n_chunk * passage.n_scored
        return tuple(self._scores(base, other, n) for other in others)

    def _scores(self, base: EngineConfig, other: EngineConfig, n: int) -> TokenScores:
        same = (other.type_k, other.type_v) == (base.type_k, base.type_v)
        kld, share = (0.0, 1.0) if same else (self.landscape.kld(other), self.landscape.same_top(other))
        same_top = tuple(i >= round(n * (1 - share)) for i in range(n))
        return TokenScores((kld,) * n, same_top, (2.0 + kld,) * n, (2.0,) * n)

    def measure(self, config: EngineConfig, trace: Trace, *, passes: int, time_limit_s: float) -> Measurement | Failed:
        self.before(len(self.launched))
        self.launched.append(config)
        self.time_limits_s.append(time_limit_s)
        reason = self.landscape.broken(config)
        if reason is not None:
            return Failed(reason, "as the landscape says")
        footprint = self.memory.footprint(config)
        fast_bytes = footprint.fast_bytes + int(footprint.guessed_bytes * (self.landscape.true_buffers - 1))
        if fast_bytes > self.landscape.device_bytes:
            return Failed(FailureReason.OUT_OF_MEMORY, "cudaMalloc failed")
        token_s = self.token_s(config)
        prompt_s = token_s * len(trace.prompt_tokens) / 8 * (512 / config.n_ubatch) ** 0.1
        counters = self._counters(config, len(trace.reply_tokens))
        measured = Measurement(
            n_prompt=len(trace.prompt_tokens),
            pp_samples_s=tuple(self._noisy(prompt_s) for _ in range(passes)),
            tg_samples_s=(self._noisy(token_s),) * len(trace.reply_tokens),
            fast_bytes=fast_bytes,
            slots=config.cache.slots if config.cache else 0,
            counters=counters,
            load_s=1.0,
        )
        self.spent_s += measured.load_s + sum(measured.pp_samples_s) + sum(measured.tg_samples_s)
        return measured

    def token_s(self, config: EngineConfig) -> float:
        """The true seconds a token, without noise."""
        land = self.landscape
        quantised = config.type_k is not KvType.F16 or config.type_v is not KvType.F16
        gain = land.quantised_kv_gain if quantised else 1.0
        if land.flat_s is not None:
            return land.flat_s / gain
        model = self.memory.model
        on_device = config.gpu_layers > 0
        in_ram = config.ram_expert_layers if on_device else model.n_layers
        ram_s = in_ram * land.ram_expert_layer_s * (1 + abs(config.n_threads - land.best_threads) / 8)
        if config.cache is not None:
            ram_s *= land.plugin_cost * (1 - land.hit_gain * self._hit_rate(config))
        elif not config.repack:
            ram_s *= 1.1
        device_s = (model.n_layers - in_ram) * land.device_expert_layer_s
        kv_s = 0.0002 if config.type_k is not KvType.F16 else 0.0
        return (land.dense_s * (1 if on_device else 4) + ram_s + device_s + kv_s) / gain

    def _hit_rate(self, config: EngineConfig) -> float:
        if config.cache is None or not self.memory.model.n_expert:
            return 0.0
        return (config.cache.slots / self.memory.model.n_expert) ** 0.5

    def _counters(self, config: EngineConfig, tokens: int) -> CacheCounters | None:
        if config.cache is None:
            return None
        pairs = tokens * 4 * len(self.memory.model.moe_layers)
        hits = int(pairs * self._hit_rate(config))
        return CacheCounters(hits, pairs - hits, tokens, tokens * 1000, 0.1, 0.2, 0.01)

    def _noisy(self, seconds: float) -> float:
        return seconds * self._random.lognormvariate(0.0, self.landscape.noise)
