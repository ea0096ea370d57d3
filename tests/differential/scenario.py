"""What a differential run does, and what it found: frozen values that travel between the tests and `replay.py`."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# An operation's name and its arguments; `Replay` has a method of each name that says what it does.
Step = tuple[str | int | float, ...]

# A prompt beyond the largest small batch, decoding token by token, then one batch of a few tokens.
USUAL_STEPS: tuple[Step, ...] = (("prompt", 40), ("decode", 24), ("batch", 5))


@dataclass(frozen=True)
class Scenario:
    """One model in one context. What `reference` keeps decides the logits; the rest must not change a bit of them.

    sequences: decoded side by side. observe_every: ask for every so-many-th node's values, 0 for none. loras: adapter
    files, loaded and switched on by steps. encoder: rows are embeddings, not logits. packed: what the plugin leaves to
    llama.cpp lies in the CPU's packed layout.
    dense_on_device, experts_on_device: what llama.cpp itself places on the emulated accelerator.
    cache: settings of the hot-expert cache as (key, value). settled: wait after every decode until promotions arrived.
    """

    model: str
    steps: tuple[Step, ...] = USUAL_STEPS
    sequences: int = 1
    n_ctx: int = 512
    n_ubatch: int = 64
    n_threads: int = 1
    kv: str = "f16"
    observe_every: int = 0
    loras: tuple[str, ...] = ()
    encoder: bool = False
    mmap: bool = False
    packed: bool = False
    dense_on_device: bool = False
    experts_on_device: int = 0
    cache: tuple[tuple[str, str], ...] = ()
    settled: bool = True

    def reference(self) -> "Scenario":
        """The same run without anything that stock llama.cpp on the CPU does not know.

        How the CPU adds up attention depends on its threads, of which the emulated accelerator has one.
        """
        n_threads = 1 if self.dense_on_device else self.n_threads
        plain = replace(self, dense_on_device=False, experts_on_device=0, n_threads=n_threads)
        return replace(plain, cache=(), settled=True)

    def with_cache(self, **settings: str | int | float) -> "Scenario":
        """The same run with these settings of the cache, on top of those it has."""
        return replace(self, cache=(*self.cache, *((key, str(value)) for key, value in settings.items())))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Scenario":
        fields: dict[str, Any] = json.loads(line)
        for name in ("steps", "cache"):
            fields[name] = tuple(tuple(entry) for entry in fields[name])
        fields["loras"] = tuple(fields["loras"])
        return Scenario(**fields)


@dataclass(frozen=True)
class Outcome:
    """Logits [rows, n_vocab] in the order they were asked for, and what the cache counted (None: it had no slots).

    failures: decodes that were refused. answers: what the cache said to each `try_set`, empty where it agreed.
    slot_bytes: held at the end, after each `look` before. machine: the emulator's counters, if there is one.
    resident_bytes: of the process, after the context was freed.
    """

    logits: np.ndarray
    counters: dict[str, float] | None
    fewest_slots: int
    failures: int
    answers: tuple[str, ...]
    slot_bytes: tuple[int, ...]
    machine: dict[str, int]
    resident_bytes: int

    @staticmethod
    def read(logits: Path, line: str) -> "Outcome":
        reply = json.loads(line)
        for name in ("answers", "slot_bytes"):
            reply[name] = tuple(reply[name])
        return Outcome(np.load(logits), **reply)


def kl_divergence(base: np.ndarray, other: np.ndarray) -> float:
    """Mean over rows of the KL divergence of the distributions that logits [rows, n_vocab] stand for, in nats."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_softmax(base), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def assert_same_bits(stock: Outcome, other: Outcome) -> None:
    """Every logit equal; otherwise say where the first difference is and how far it goes."""
    assert stock.logits.shape == other.logits.shape
    assert np.isfinite(stock.logits).all(), "the model itself yields no numbers"
    if np.array_equal(stock.logits, other.logits):
        return
    rows = np.flatnonzero((stock.logits != other.logits).any(axis=1))
    finite = np.isfinite(other.logits).all()
    divergence = kl_divergence(stock.logits, other.logits) if finite else float("nan")
    raise AssertionError(
        f"{len(rows)} of {len(stock.logits)} rows differ, the first is {rows[0]}; KLD {divergence:.3g}; "
        f"counted {other.counters}"
    )


def assert_same_distribution(stock: Outcome, other: Outcome, limit: float = 1e-4) -> None:
    """For tiers whose kernels differ: KLD below `limit`."""
    assert stock.logits.shape == other.logits.shape
    assert np.isfinite(other.logits).all()
    assert kl_divergence(stock.logits, other.logits) < limit


def assert_worked(outcome: Outcome) -> None:
    """The cache cannot be right by doing nothing: both tiers served pairs, and experts moved."""
    assert outcome.counters is not None, "no layer ever had slots"
    for what in ("hits", "misses", "promotions"):
        assert outcome.counters[what] > 0, f"no {what}: {outcome.counters}"
