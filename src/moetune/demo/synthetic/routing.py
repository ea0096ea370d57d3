"""How a random model comes to have favourite experts.

Every token embedding carries a direction common to all tokens (and, with drift, one common to its topic). A router
row that leans along such a direction raises its expert for all tokens that carry it; the part of the row orthogonal
to them depends on the single token. The residual stream keeps the directions through the layers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetune.demo.synthetic.spec import SyntheticSpec

Floats = NDArray[np.float32]

# How far a router row leans for skew 1: with it, skew 0.9 gives the shares of popular experts of trained models.
_LEAN = 0.55
# Log-popularity falls like Zipf's law with this offset, as in trained models whose top expert is not alone.
_ZIPF_OFFSET = 1.5
# The common part fades as layers add to the stream; routers of later layers lean harder to make up for it.
_FADE_A_LAYER = 0.15


@dataclass(frozen=True)
class Routing:
    """``common`` [embd] and ``topical`` [topics, embd]: unit vectors, orthogonal to each other."""

    spec: SyntheticSpec
    common: Floats
    topical: Floats

    @staticmethod
    def of(spec: SyntheticSpec) -> "Routing":
        rng = np.random.default_rng([spec.seed, 1])
        basis, _ = np.linalg.qr(rng.standard_normal((spec.embd, 1 + spec.topics)))
        return Routing(spec, basis[:, 0].astype(np.float32), basis[:, 1:].T.astype(np.float32))

    def embeddings(self, rng: np.random.Generator) -> Floats:
        """Token embeddings [vocab, embd], root-mean-square about 1."""
        spec = self.spec
        topic = np.arange(spec.vocab) * spec.topics // spec.vocab
        shared = np.sqrt(1 - spec.drift) * self.common + np.sqrt(spec.drift) * self.topical[topic]
        own = rng.standard_normal((spec.vocab, spec.embd), dtype=np.float32)
        # Experts answer the common part alike, which later routers would see: flat routing must do without it.
        strength = min(1.0, 2 * spec.skew)
        mixed = own + strength * np.sqrt(spec.embd) * shared
        return np.asarray(mixed / np.sqrt(1 + strength**2), np.float32)

    def router(self, rng: np.random.Generator, layer: int) -> Floats:
        """Router rows [experts, embd] whose logits over normalised inputs have a token-dependent part of std 1."""
        spec = self.spec
        rows = rng.standard_normal((spec.experts, spec.embd), dtype=np.float32)
        span = np.vstack([self.common, self.topical])
        # Without this a random row would favour its expert for all tokens even at skew 0.
        rows -= rows @ span.T @ span
        lean = _LEAN * spec.skew * np.sqrt(1 + _FADE_A_LAYER * layer)
        popular = np.sqrt(1 - spec.drift) * np.outer(self._popularity(rng), self.common)
        for direction in self.topical:
            popular += np.sqrt(spec.drift) * np.outer(self._popularity(rng), direction)
        return np.asarray((rows + lean * popular) / np.sqrt(spec.embd), np.float32)

    def _popularity(self, rng: np.random.Generator) -> Floats:
        """Log-popularity [experts] in random order, mean zero."""
        logs = -np.log(rng.permutation(self.spec.experts) + _ZIPF_OFFSET)
        return np.asarray(logs - logs.mean(), np.float32)
