"""What a measurement returns: numbers with their raw samples, or a typed failure. Never a fake score."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from statistics import median, quantiles
from typing import Protocol

from moetune.engine.config import EngineConfig
from moetune.engine.passage import Passage, TokenScores


@dataclass(frozen=True)
class Trace:
    """The fixed tokens every configuration is measured on, so that routing is the same and comparisons are paired.

    depth_tokens are put into the KV cache untimed; prompt_tokens are timed as pp. Then, teacher-forced and one by one:
    warmup_tokens, other text, until speed and hit rate are flat; and, in their place, reply_tokens, timed as tg.
    """

    name: str
    depth_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    reply_tokens: tuple[int, ...]
    warmup_tokens: tuple[int, ...]

    @property
    def n_ctx_needed(self) -> int:
        """Positions the trace occupies."""
        tail = max(len(self.reply_tokens), len(self.warmup_tokens))
        return len(self.depth_tokens) + len(self.prompt_tokens) + tail


@dataclass(frozen=True)
class CacheCounters:
    """Sums over the layers and the timed tokens of one measurement.

    bytes_moved: promotions over the link. steps: FFN evaluations; of these, device_steps kept their activations in the
    fast tier, plain_steps went without the cache because the guard said so, ahead_steps began in the fast tier before
    the host knew the experts, and whole_steps hit with every pair. prompt_steps: batches of prompts, of which
    streamed_steps had their experts streamed to the fast tier. hot_s, cold_s, wait_s, stall_s: seconds in the hot
    chains, in the cold ones, waiting for the fast tier, waiting because experts were being promoted. layers_off: layers
    in which the guard has switched the cache off.
    """

    hits: int
    misses: int
    promotions: int
    bytes_moved: int
    hot_s: float
    cold_s: float
    wait_s: float
    stall_s: float = 0.0
    steps: int = 0
    device_steps: int = 0
    plain_steps: int = 0
    ahead_steps: int = 0
    whole_steps: int = 0
    prompt_steps: int = 0
    streamed_steps: int = 0
    streamed_bytes: int = 0
    repacked_bytes: int = 0
    layers_off: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of routed (token, expert) pairs served by the fast tier; None when nothing was routed."""
        pairs = self.hits + self.misses
        return self.hits / pairs if pairs else None


@dataclass(frozen=True)
class Measurement:
    """One configuration on one trace.

    pp_samples_s: seconds of each timed prompt pass (n_prompt tokens each). tg_samples_s: seconds of each timed decoded
    token. fast_bytes: device memory in use by the model, its context and the slots; slots: slots a layer really held,
    which is fewer than asked for when the fast tier was too small. load_s: seconds a (re)load cost, 0 when none.
    warmup_samples_s: seconds of each token before that, from empty slots on. steady: these ended flat.
    """

    n_prompt: int
    pp_samples_s: tuple[float, ...]
    tg_samples_s: tuple[float, ...]
    fast_bytes: int
    slots: int
    counters: CacheCounters | None
    load_s: float
    warmup_samples_s: tuple[float, ...] = ()
    steady: bool = True

    @property
    def has_timings(self) -> bool:
        """Whether speeds can be told from it at all."""
        samples = (*self.pp_samples_s, *self.tg_samples_s, *self.warmup_samples_s)
        whole = self.n_prompt > 0 and self.pp_samples_s and self.tg_samples_s and all(0 <= s < inf for s in samples)
        return bool(whole) and min(*self.pp_samples_s, sum(self.tg_samples_s)) > 0

    @property
    def pp_tps(self) -> float:
        """Prompt processing, tokens a second (median pass)."""
        return self.n_prompt / median(self.pp_samples_s)

    @property
    def tg_tps(self) -> float:
        """Token generation, tokens a second over all timed tokens: a mean, because stalls count."""
        return len(self.tg_samples_s) / sum(self.tg_samples_s)

    @property
    def slow_token_s(self) -> float:
        """What nine of ten decoded tokens take at most, seconds: the inverse of the p10 speed."""
        return quantiles(self.tg_samples_s, n=10)[-1] if len(self.tg_samples_s) > 1 else self.tg_samples_s[0]

    def turn_s(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Seconds for one request of `prompt_tokens` in and `reply_tokens` out at the measured depth."""
        return prompt_tokens / self.pp_tps + reply_tokens / self.tg_tps

    def cold_turn_s(self, prompt_tokens: int, reply_tokens: int) -> float:
        """The same for the very first request, from empty slots on."""
        first_s = (*self.warmup_samples_s, *self.tg_samples_s)[:reply_tokens]
        return prompt_tokens / self.pp_tps + reply_tokens * sum(first_s) / len(first_s)


class FailureReason(StrEnum):
    """Why a configuration has no measurement."""

    OUT_OF_MEMORY = "out of memory"
    CRASHED = "engine process crashed"
    HUNG = "time limit reached"
    LOAD_FAILED = "model did not load"
    CONTEXT_FAILED = "context could not be created"
    DECODE_FAILED = "decode failed"
    REFUSED = "engine refused the configuration"


@dataclass(frozen=True)
class Failed:
    """A trial without a measurement. detail: the engine's last words, one or two lines."""

    reason: FailureReason
    detail: str


class Scorer(Protocol):
    """What the quality gate needs of an engine."""

    def score(
        self, base: EngineConfig, others: tuple[EngineConfig, ...], passage: Passage, *, time_limit_s: float
    ) -> tuple[TokenScores, ...] | Failed:
        """Each of `others` against `base`; they may differ in what needs no reload of the model."""

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Tokens of `text` in the model's vocabulary, without special tokens."""


class Runner(Scorer, Protocol):
    """Measures configurations of one model. The real one keeps an engine process alive across calls.

    `measure` never raises for what a configuration does to the engine: that is a `Failed`. It may reload or restart the
    process when the placement differs from the last call's. `time_limit_s` covers everything including a reload.
    """

    def measure(self, config: EngineConfig, trace: Trace, *, passes: int, time_limit_s: float) -> Measurement | Failed:
        """Measure one configuration; `passes` timed prompt passes."""

    def close(self) -> None:
        """End the engine process; the next call starts a fresh one."""
