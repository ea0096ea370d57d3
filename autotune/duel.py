"""The final side-by-side of a candidate and the best baseline: fresh, interleaved, and only a proven gain wins."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pydantic import TypeAdapter
from scipy.stats import t as student_t

from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement

FEWEST_BLOCKS = 4
# An interval from x to more than twice x comes from a disturbed machine, not from two configurations.
_WIDEST = 2.0
Measure = Callable[[EngineConfig], Measurement | Failed]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Interval:
    """How many times as fast the candidate is: baseline's turn time divided by the candidate's."""

    gain: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Block:
    """One pair of neighbouring measurements; `candidate_first` alternates, so that drift cancels."""

    candidate_first: bool
    baseline_config: EngineConfig
    candidate_config: EngineConfig
    baseline: Measurement
    candidate: Measurement
    baseline_turn_s: float
    candidate_turn_s: float


@dataclass(frozen=True)
class Duel:
    """All blocks of one side-by-side. failure: why it could not be finished; interval is None then."""

    baseline_name: str
    baseline: EngineConfig
    candidate: EngineConfig
    blocks: tuple[Block, ...]
    interval: Interval | None
    margin: float
    failure: str | None

    @property
    def won(self) -> bool:
        """Whether the gain is proven: the lower bound clears the margin, and the blocks agree well enough to count."""
        interval = self.interval
        return interval is not None and interval.low > 1 + self.margin and interval.high < _WIDEST * interval.low


BLOCK = TypeAdapter(Block)


def interval_of(log_ratios: list[float], confidence: float) -> Interval:
    """Student's t interval of the mean log-ratio, as a ratio; needs two or more blocks."""
    centre = mean(log_ratios)
    spread = stdev(log_ratios) / math.sqrt(len(log_ratios))
    half = float(student_t.ppf(0.5 + confidence / 2, len(log_ratios) - 1)) * spread
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), confidence)


def fight(
    baseline_name: str,
    baseline: EngineConfig,
    candidate: EngineConfig,
    *,
    measure: Measure,
    turn_s: Callable[[Measurement], float],
    blocks: int,
    margin: float,
    comparisons: int,
    progress: Progress,
    earlier: Sequence[Block] = (),
    keep: Callable[[Block], None],
) -> Duel:
    """Measure A B, B A, A B, ... (A the baseline). `comparisons`: duels that share the 5 % risk (Bonferroni).
    earlier: blocks of this very pair from a run that was interrupted or finished; only what is missing is measured.

    The number of blocks is fixed beforehand: looking after every block and stopping at the first good look would name
    far more false winners than the interval admits.
    """
    planned = max(FEWEST_BLOCKS, blocks)
    done = list(earlier[:planned])
    for index in range(len(done), planned):
        candidate_first = index % 2 == 1
        pair: dict[bool, Measurement] = {}
        for is_candidate in (candidate_first, not candidate_first):
            outcome = measure(candidate if is_candidate else baseline)
            if isinstance(outcome, Failed):
                who = "the candidate" if is_candidate else "the baseline"
                why = f"{who} failed in the side-by-side: {outcome.reason}"
                return Duel(baseline_name, baseline, candidate, tuple(done), None, margin, why)
            pair[is_candidate] = outcome
            progress(2 * len(done) + len(pair), 2 * planned)
        block = Block(
            candidate_first=candidate_first,
            baseline_config=baseline,
            candidate_config=candidate,
            baseline=pair[False],
            candidate=pair[True],
            baseline_turn_s=turn_s(pair[False]),
            candidate_turn_s=turn_s(pair[True]),
        )
        keep(block)
        done.append(block)
    ratios = [math.log(block.baseline_turn_s / block.candidate_turn_s) for block in done]
    interval = interval_of(ratios, 1 - 0.05 / max(1, comparisons))
    return Duel(baseline_name, baseline, candidate, tuple(done), interval, margin, None)
