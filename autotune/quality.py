"""What a KV-cache type may cost in quality: the levels, and how figures are held against them."""

from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import binomtest, norm

from moetune.engine.config import KvType
from moetune.engine.divergence import Divergence

_CONFIDENCE = 0.95


class QualityLevel(StrEnum):
    """How much a quantised KV cache may change what the model says; `any` measures nothing."""

    NEAR_LOSSLESS = "near-lossless"
    OK = "ok"
    ANY = "any"


@dataclass(frozen=True)
class Limits:
    """mean_kld: nats a token, at most. top1: share of tokens with the same likeliest successor, at least."""

    mean_kld: float
    top1: float


# On llama.cpp's published scale of quantised weights (tools/perplexity/README.md, LLaMA 3 8B against f16) a mean KLD of
# 0.01 lies between q6_K (0.0055) and q5_K_M (0.0108), one of 0.03 between q4_K_M with an importance matrix (0.0282) and
# without (0.0313). Published runs of an 8B model that print both figures put the shares of equal top tokens beside
# them: 96.5 % at a mean KLD of 0.0047, 99.2 % at 0.0002 (Watt-Tool-8B-GGUF, scores/).
LIMITS = {QualityLevel.NEAR_LOSSLESS: Limits(0.01, 0.97), QualityLevel.OK: Limits(0.03, 0.94)}


@dataclass(frozen=True)
class QualityFigures:
    """A pair of KV types against f16. at_depth: with the scored tokens behind a long context; None: no room for one."""

    in_chunks: Divergence
    at_depth: Divergence | None


@dataclass(frozen=True)
class QualityReport:
    """Whether a pair of KV types may be chosen. figures: None where nothing had to be, or could be, measured.

    floor: f16 against f16 with another micro-batch, which no type can be asked to undercut.
    """

    type_k: KvType
    type_v: KvType
    passed: bool
    reason: str
    figures: QualityFigures | None = None
    floor: QualityFigures | None = None

    @property
    def types(self) -> str:
        """The pair in the words of the flags."""
        return f"KV {self.type_k}" if self.type_k == self.type_v else f"K {self.type_k}, V {self.type_v}"

    @property
    def sentence(self) -> str:
        """Figures and judgement for people, without a full stop."""
        if self.figures is None:
            return f"{self.types}: {self.reason}"
        measured = f"{self.types} against f16: {describe(self.figures.in_chunks)}"
        if self.figures.at_depth is not None:
            measured += f"; at depth {describe(self.figures.at_depth)}"
        if self.floor is not None:
            measured += f"; noise floor KLD {self.floor.in_chunks.mean:.2g}"
        return f"{measured} ({self.reason})"


def describe(found: Divergence) -> str:
    """KLD with its error and tail, and the share of equal top tokens."""
    return (
        f"KLD {found.mean:.2g} ± {found.mean_error:.1g} (99.9 %: {found.p999:.2g}), "
        f"same top token {found.top1:.1%} ± {found.top1_error:.1%}"
    )


def judge_quality(
    type_k: KvType, type_v: KvType, figures: QualityFigures, floor: QualityFigures, level: QualityLevel
) -> QualityReport:
    """Both in chunks and at depth have to be inside `level`, which must not be `any`."""
    faults = [_fault(figures.in_chunks, floor.in_chunks, LIMITS[level], "")]
    if figures.at_depth is not None:
        faults.append(_fault(figures.at_depth, floor.at_depth or floor.in_chunks, LIMITS[level], " at depth"))
    found = [fault for fault in faults if fault]
    return QualityReport(type_k, type_v, not found, "; ".join(found) or f"inside {level}", figures, floor)


def _fault(found: Divergence, floor: Divergence, limits: Limits, where: str) -> str:
    """Why `found` is not proven to be inside, "" where it is.

    Proven: 95 % sure (normal bound of the mean, Wilson's of the share), or no further from f16 than f16 is from itself.
    """
    if found.mean <= floor.mean and found.top1 >= floor.top1:
        return ""
    if found.mean > limits.mean_kld:
        return f"mean KLD{where} above {limits.mean_kld:g}"
    if found.top1 < limits.top1:
        return f"same top token{where} below {limits.top1:.0%}"
    high = found.mean + float(norm.ppf(_CONFIDENCE)) * found.mean_error
    share = binomtest(found.n_same_top, found.n_tokens, alternative="greater").proportion_ci(_CONFIDENCE, "wilson")
    if high > limits.mean_kld or share.low < limits.top1:
        return f"too close to tell from {found.n_tokens:,} tokens{where}"
    return ""
