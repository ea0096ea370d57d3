"""How often a routed expert is found in a slot, as a function of the slots a layer: recorded, stated, or assumed."""

import re
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from moetune.engine.config import Policy
from moetune.engine.routing import Routing
from moetune.engine.routing_replay import hit_rates
from moetune.errors import ExitCode, MoetuneError

_SLOT_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
_STATED = re.compile(r"(?P<taken>\d*\.?\d+)@(?P<share>\d*\.?\d+)")
_STEEPEST = 6.0
_MOST_LOGIT = 12.0


@dataclass(frozen=True)
class Skew:
    """The busiest `share` of a layer's experts take `taken` of what is routed; both from 0 to 1.

    source: who says so.
    """

    taken: float
    share: float
    source: str

    def __str__(self) -> str:
        return f"the busiest {self.share:.0%} of the experts take {self.taken:.0%} ({self.source})"


# Qwen3-30B-A3B, counted with llama-imatrix: 65 of 128 experts for 90 % of mixed text, 58 for 90 % of Python.
DEFAULT_SKEW = Skew(0.90, 0.48, "assumed; counted for Qwen3-30B-A3B by mcp-tool-shop.org/gpu-container")


def stated_skew(text: str) -> Skew:
    """From such as "0.85@0.2": the busiest 20 % of the experts take 85 %. Raises MoetuneError (USAGE)."""
    match = _STATED.fullmatch(text.strip())
    skew = Skew(float(match["taken"]), float(match["share"]), "as stated") if match else None
    if skew is None or not 0 < skew.share < 1 or not skew.share <= skew.taken < 1:
        raise MoetuneError(
            f"--skew {text[:40]!r} states no skew of routing.",
            "Write TAKEN@SHARE, both between 0 and 1, such as 0.85@0.2: the busiest 20 % of the experts take 85 %.",
            ExitCode.USAGE,
        )
    return skew


@dataclass(frozen=True)
class HitCurve:
    """Hit rates by slots a layer, rising from 0 to 1, and how evenly experts are used. source: what they rest on.

    slots, rates: points of the curve, straight lines between them. chances: of each expert, that a token chooses it.
    shift: what measured hit rates moved the curve by, in logits.
    """

    slots: tuple[float, ...]
    rates: tuple[float, ...]
    chances: tuple[float, ...]
    source: str
    shift: float = 0.0

    def rate(self, slots: int) -> float:
        """Share of the routed pairs that `slots` slots a layer serve."""
        plain = float(np.interp(slots, self.slots, self.rates))
        if self.shift == 0.0 or not 0 < plain < 1:
            return plain
        return 1 / (1 + float(np.exp(-(_logit(plain) + self.shift))))

    def shift_to(self, slots: int, measured: float) -> float:
        """The shift with which the curve would go through a measured rate."""
        return _logit(measured) - _logit(float(np.interp(slots, self.slots, self.rates)))

    def distinct(self, tokens: int) -> float:
        """How many of a layer's experts a batch of so many tokens needs."""
        return float((1 - (1 - np.array(self.chances)) ** tokens).sum())


def curve_from_skew(n_expert: int, n_used: int, skew: Skew) -> HitCurve:
    """The slots hold the busiest experts, whose popularity falls like Zipf's law.

    A token's experts are distinct, so that expert i is among them with probability 1 - exp(-rate * i ** -steepness);
    both parameters follow from the stated point and from `n_used` experts a token.
    """
    if n_expert < 1:
        return HitCurve((0.0, 1.0), (0.0, 1.0), (), "no experts")
    chances = _chances(n_expert, n_used, skew)
    taken = np.concatenate(([0.0], np.cumsum(chances) / chances.sum()))
    return HitCurve(tuple(np.arange(n_expert + 1.0)), tuple(taken.tolist()), tuple(chances.tolist()), str(skew))


def _chances(n_expert: int, n_used: int, skew: Skew) -> NDArray[np.float64]:
    ranks = np.arange(1.0, n_expert + 1)

    def at(steepness: float) -> NDArray[np.float64]:
        popularity = ranks**-steepness

        def surplus(log_rate: float) -> float:
            return float(-np.expm1(-np.exp(log_rate) * popularity).sum()) - min(n_used, n_expert * 0.999)

        log_rate = brentq(surplus, -60.0, 60.0 + _STEEPEST * log(n_expert))
        return np.asarray(-np.expm1(-np.exp(log_rate) * popularity))

    def excess(steepness: float) -> float:
        chances = at(steepness)
        top = np.interp(skew.share * n_expert, np.arange(n_expert + 1.0), np.concatenate(([0.0], np.cumsum(chances))))
        return float(top / chances.sum()) - skew.taken

    # Where a token takes so many of so few experts that none can be that busy, the steepest law is the nearest.
    if excess(_STEEPEST) <= 0:
        return at(_STEEPEST)
    return at(brentq(excess, 0.0, _STEEPEST)) if excess(0.0) < 0 else at(0.0)


def curve_from_routing(routing: Routing, policy: Policy = Policy.HEAT) -> HitCurve:
    """What `policy` with its default settings hits on the recorded workloads, all together."""
    n_expert = max(layer.n_expert for layer in routing.layers)
    slots = tuple(sorted({max(1, round(share * n_expert)) for share in _SLOT_SHARES}))
    per_workload = [hit_rates(routing.layers, w, slots, (), lambda: None) for w in routing.workloads]
    weights = [rates.n_scored_tokens for rates in per_workload]
    mean = np.average([rates.rates[policy.value] for rates in per_workload], axis=0, weights=weights)
    # A policy may lose a little with more slots on one text; as a prediction that would be noise.
    rising = np.maximum.accumulate(mean)
    uses = sum(workload.n_tokens for workload in routing.workloads)
    used = [np.sort(sum(counts[at] for counts in routing.counts))[::-1] / uses for at in range(len(routing.layers))]
    widest = [np.pad(layer, (0, n_expert - len(layer))) for layer in used]
    names = ", ".join(workload.name for workload in routing.workloads)
    return HitCurve(
        (0.0, *map(float, slots), float(n_expert)),
        (0.0, *rising.tolist(), 1.0),
        tuple(np.mean(widest, axis=0).tolist()),
        f"recorded routing of {names}, policy {policy.value}",
    )


def _logit(rate: float) -> float:
    inside = min(max(rate, 1e-6), 1 - 1e-6)
    return min(max(log(inside / (1 - inside)), -_MOST_LOGIT), _MOST_LOGIT)
