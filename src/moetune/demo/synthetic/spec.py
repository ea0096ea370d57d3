"""What a synthetic model shall be: sizes, storage types, and how unevenly it routes."""

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

STORAGE_TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4", "NVFP4")
HEAD_DIM = 64
BYTE_TOKENS = 256
CONTROL_TOKENS = 2


@dataclass(frozen=True)
class SyntheticSpec:
    """One random-weight model. Sizes are in elements; ``ff`` is the width of one expert.

    ``skew`` is how uneven expert popularity is: 0 is flat, 0.9 resembles trained models, 4 is extreme.
    ``drift`` (0 to 1) moves that popularity from one ranking for all tokens to a ranking for each topic, where the
    topic of a token is ``id * topics // vocab``. ``loudness`` scales the embeddings: the louder they are beside what
    layers add, the more do deep layers route by the token, as the first one does. ``experts=0`` makes a dense model;
    ``used`` is then ignored. ``quant`` stores the routed experts, ``quant_down`` their down projection if it differs,
    ``quant_odd`` all of them in every second layer if it differs, ``quant_dense`` every other matrix. ``latent`` > 0
    narrows the experts' input and output where the architecture can (nemotron_h_moe, kimi-k3).
    Raises ValueError, naming the field, when the sizes do not fit together.
    """

    arch: str = "qwen3moe"
    layers: int = 4
    experts: int = 16
    used: int = 4
    embd: int = 256
    ff: int = 128
    kv_heads: int = 2
    vocab: int = 512
    context: int = 4096
    quant: str = "Q4_0"
    quant_down: str | None = None
    quant_odd: str | None = None
    quant_dense: str = "F16"
    skew: float = 0.9
    drift: float = 0.0
    topics: int = 4
    loudness: float = 1.0
    fused_gate_up: bool = False
    expert_scales: bool = False
    latent: int = 0
    split: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("quant", "quant_down", "quant_odd", "quant_dense"):
            if getattr(self, field) not in (*STORAGE_TYPES, None):
                raise ValueError(f"{field}: {getattr(self, field)!r} is not one of {', '.join(STORAGE_TYPES)}")
        for field in ("layers", "embd", "ff", "kv_heads", "context", "topics", "split"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1")
        if self.experts and not 1 <= self.used <= self.experts:
            raise ValueError(f"used: must lie between 1 and experts ({self.experts})")
        if self.vocab < BYTE_TOKENS + CONTROL_TOKENS:
            raise ValueError(f"vocab: must be at least {BYTE_TOKENS + CONTROL_TOKENS} (every byte and two controls)")
        if self.embd % HEAD_DIM or self.heads % self.kv_heads:
            raise ValueError(f"embd: must be a multiple of kv_heads * {HEAD_DIM}")
        if self.topics >= self.embd:
            raise ValueError("topics: must be fewer than embd")
        if self.skew < 0 or not 0 <= self.drift <= 1:
            raise ValueError("skew, drift: skew must not be negative and drift must lie between 0 and 1")
        if self.loudness <= 0:
            raise ValueError("loudness: must be positive")
        for layer in (0, 1):
            self._check_row("embd", self.embd, self.expert_quant(layer))
            self._check_row("ff", self.ff, self.down_quant(layer))
            self._check_row("latent", self.latent, self.expert_quant(layer))

    def _check_row(self, field: str, width: int, quant: str) -> None:
        block = GGML_QUANT_SIZES[GGMLQuantizationType[quant]][0]
        if width % block:
            raise ValueError(f"{field}: {quant} stores rows in blocks of {block}; {width} is not a multiple")

    @property
    def heads(self) -> int:
        """Query heads; the head dimension is fixed."""
        return self.embd // HEAD_DIM

    def expert_quant(self, layer: int) -> str:
        """Storage of the gate and up projections of one layer's experts."""
        return (self.quant_odd if layer % 2 else None) or self.quant

    def down_quant(self, layer: int) -> str:
        """Storage of their down projections."""
        return (self.quant_odd if layer % 2 else None) or self.quant_down or self.quant

    @property
    def dense_ff(self) -> int:
        """Width of a dense FFN: as much arithmetic as the experts one token uses."""
        return self.ff * max(1, self.used)
