"""What the engine benchmark compares: models, routings, emulated machines, and the arms of each case."""

from dataclasses import dataclass, field

import numpy as np

from moetune.demo.synthetic import SyntheticSpec

PROMPT_TOKENS = 512
# Skewed as field measurements have it: the top 20 % of experts take about 85 % of activations, of a topic's where it
# drifts; the benchmark prints what they really take.
ROUTINGS: dict[str, dict[str, float]] = {
    "skewed": {"skew": 2.1},
    "drifting": {"skew": 2.1, "drift": 1.0},
    "flat": {"skew": 0.0},
}
LOUDNESS = 8.0  # so loud that all layers route alike
TOPIC_TOKENS = 96  # of one topic, before a drifting text turns to the next
RESIDENT = 0.25
N_EXPERT = 64
LAYERS = 12


@dataclass(frozen=True)
class Machine:
    """An emulated machine and the model it runs: what an expert's size is to its bandwidths decides."""

    preset: str
    embd: int
    ff: int
    vram_mib: int

    @property
    def text(self) -> str:
        """What `--emulate` would be given."""
        return f"{self.preset},vram_mib={self.vram_mib}"


MACHINES = {
    "desktop": Machine("desktop", embd=256, ff=256, vram_mib=64),
    "small-card": Machine("small-card", embd=256, ff=256, vram_mib=64),
    # Experts as small, beside launches as slow, as they are on the real thing.
    "server": Machine("server", embd=128, ff=128, vram_mib=48),
}


def spec_of(machine: Machine, routing: str) -> SyntheticSpec:
    """The random-weight model of a case."""
    return SyntheticSpec(
        arch="qwen3moe",
        layers=LAYERS,
        experts=N_EXPERT,
        used=8,
        embd=machine.embd,
        ff=machine.ff,
        quant="Q4_0",
        quant_dense="Q8_0",
        loudness=LOUDNESS,
        **ROUTINGS[routing],  # type: ignore[arg-type]  # skew and drift are floats
    )


@dataclass(frozen=True)
class Text:
    """Random tokens; in a drifting text, of one topic at a time."""

    routing: str
    vocab: int
    topics: int
    seed: int = 5
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))

    def tokens(self, n: int) -> list[int]:
        """The next `n` tokens."""
        if "drift" not in ROUTINGS[self.routing]:
            return [int(t) for t in self._rng.integers(1, self.vocab - 2, n)]
        width = self.vocab // self.topics
        first = int(self._rng.integers(self.topics))
        topics = (first + np.arange(n) // TOPIC_TOKENS) % self.topics
        return [int(t) for t in np.clip(topics * width + self._rng.integers(0, width, n), 1, self.vocab - 3)]
