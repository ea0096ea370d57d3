"""How still this machine is: the incumbent measured against itself, before anything is compared."""

import math
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import theilslopes

from moetune.autotune.race import Round, Rules, Track
from moetune.autotune.sequential import half_width, pooled_deviation
from moetune.engine.config import EngineConfig

ROUNDS = 3


@dataclass(frozen=True)
class Noise:
    """Relative standard deviations of a turn's time within a process and between processes, and the drift
    from round to round.

    smallest_effect: what a race of all its rounds can still tell from nothing.
    """

    within: float
    between: float
    drift_a_round: float
    smallest_effect: float

    @property
    def of_one(self) -> float:
        """Of a single measurement in a process of its own."""
        return math.hypot(self.within, self.between)


def measure_noise(incumbent: EngineConfig, track: Track, rules: Rules, earlier: list[Round]) -> Noise | None:
    """A/A: the incumbent alone, there and back, a few times; None when it failed or the machine never kept still."""
    known = [entry for entry in earlier if len(entry.contenders) == 1]
    # Whoever was the incumbent then: the noise is the machine's.
    itself = known[0].contenders if known else (incumbent,)
    rounds = [entry for entry in known if entry.contenders == itself]
    began = len(rounds)
    while sum(entry.disturbed is None for entry in rounds) < ROUNDS:
        if len(rounds) - began >= 2 * ROUNDS or not track.may_go_on():
            return None
        track.progress(f"A/A, round {len(rounds) + 1}")
        finished = track.run_round(itself)
        if not isinstance(finished, Round):
            return None
        rounds.append(finished)
    return noise_of([entry for entry in rounds if entry.disturbed is None], rules)


def noise_of(rounds: list[Round], rules: Rules) -> Noise:
    """From A/A rounds, each of two measurements in one process."""
    logs = [[math.log(run.turn_s) for run in entry.runs] for entry in rounds]
    within = pooled_deviation([(there, back) for there, back in logs])
    centres = [mean(pair) for pair in logs]
    between = math.sqrt(max(0.0, stdev(centres) ** 2 - within**2 / len(logs[0])))
    drift = float(theilslopes(centres)[0])
    # In a round the incumbent runs in two processes and the candidate in one, each measured twice in all.
    deviation = math.sqrt(1.5 * between**2 + within**2)
    # What is won must clear the margin with its lower bound.
    smallest = math.expm1(math.log1p(rules.margin) + half_width(deviation, rules.most_rounds, rules.risk))
    return Noise(within, between, drift, smallest)
