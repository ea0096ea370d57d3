"""A model on paper: metadata and tensors with their sizes, before any weight is drawn."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from moetune.demo.synthetic.blocks import random_tensor
from moetune.demo.synthetic.routing import Routing
from moetune.demo.synthetic.spec import SyntheticSpec

Value = bool | int | float | str | list[int] | list[float] | list[bool]
Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: ``shape`` is outermost first, in elements; ``draw`` makes its data from a generator of its own."""

    name: str
    shape: tuple[int, ...]
    quant: str
    draw: Callable[[np.random.Generator], Array]

    @property
    def bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.quant]]
        return math.prod(self.shape) // block * block_bytes

    def data(self, seed: int) -> Array:
        """The weights. They depend on the seed and the name alone, not on the order or number of tensors."""
        return self.draw(np.random.default_rng([seed, zlib.crc32(self.name.encode())]))


@dataclass
class ModelPlan:
    """Collects what an architecture asks for. Gains are output scale over input scale for white input."""

    spec: SyntheticSpec
    routing: Routing
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[TensorPlan] = field(default_factory=list)

    def set(self, **values: Value) -> None:
        """Architecture metadata; a double underscore in a name stands for the dot of the key."""
        self.metadata.update({key.replace("__", "."): value for key, value in values.items()})

    def constant(self, name: str, shape: int | tuple[int, ...], value: float, spread: float = 0.0) -> None:
        """An F32 tensor around ``value``: norms, biases, scales. Small tensors must not be quantised."""
        size = (shape,) if isinstance(shape, int) else shape

        def draw(rng: np.random.Generator) -> Array:
            return (value + spread * rng.standard_normal(size)).astype(np.float32)

        self.tensors.append(TensorPlan(name, size, "F32", draw))

    def norm(self, name: str, width: int | None = None, value: float = 1.0) -> None:
        """A norm's weight, near ``value`` but not equal, so that skipping the norm shows."""
        self.constant(f"{name}.weight", width or self.spec.embd, value, spread=0.05 * value)

    def norm_rows(self, name: str, groups: int, width: int) -> None:
        """A norm with a weight row for each group of channels."""
        self.constant(f"{name}.weight", (groups, width), 1.0, spread=0.05)

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0, quant: str | None = None) -> None:
        """A dense weight matrix in the type of the dense part."""
        self._random(f"{name}.weight", (rows, columns), quant or self.spec.quant_dense, gain / math.sqrt(columns))

    def experts(self, name: str, rows: int, columns: int, gain: float, quant: str, *, count: int = 0) -> None:
        """One matrix for each expert, or ``count`` of them, stacked."""
        shape = (count or self.spec.experts, rows, columns)
        self._random(f"{name}.weight", shape, quant, gain / math.sqrt(columns))

    def embedding(self, scale: float = 1.0) -> None:
        """Token embeddings of root-mean-square ``scale``, carrying the directions that routers lean on."""
        shape = (self.spec.vocab, self.spec.embd)

        def draw(rng: np.random.Generator) -> Array:
            return (self.routing.embeddings(rng) * scale * self.spec.loudness).astype(np.float16)

        self.tensors.append(TensorPlan("token_embd.weight", shape, "F16", draw))

    def router(self, layer: int) -> None:
        name = f"blk.{layer}.ffn_gate_inp.weight"
        shape = (self.spec.experts, self.spec.embd)
        self.tensors.append(TensorPlan(name, shape, "F32", lambda rng: self.routing.router(rng, layer)))

    def _random(self, name: str, shape: tuple[int, ...], quant: str, std: float) -> None:
        self.tensors.append(TensorPlan(name, shape, quant, lambda rng: random_tensor(rng, shape, quant, std)))
