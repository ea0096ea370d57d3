"""What the trials so far say of configurations that were not tried: a Gaussian process on the cost model's errors.

The cost model knows memory and bandwidth; of policies, intervals and layouts it knows little. Where a trial was faster
or slower than predicted, what differs from it in few settings is expected to be so, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from moetune.autotune.cost import CostModel
from moetune.autotune.knobs import Choice, Knob
from moetune.autotune.record import TrialRecord
from moetune.autotune.space import Space
from moetune.engine.config import EngineConfig

# Standard deviation of the logarithm of measured over predicted time, once corrected: what the cost model misses.
_DEVIATION = 0.2
# By how much the logarithm of the correlation falls from one end of the space to the other, shared by all settings, and
# between engines, which are other code.
_FALL = 3.0
_ENGINE_FALL = 1.0

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """Fitted to measured trials. points: a row of settings a trial, scaled to 0..1. errors: of each trial the
    logarithms of its turn and of its slow tokens over what the cost model says. noise: of a single trial, relative.
    """

    space: Space
    cost: CostModel
    points: Matrix
    errors: Matrix
    noise: float

    @staticmethod
    def of(space: Space, cost: CostModel, records: Sequence[TrialRecord], noise: float) -> "Surrogate":
        """From all records with a measurement; there must be one."""
        seen = [(r.config, r.turn_s, r.measurement.slow_token_s) for r in records if r.turn_s and r.measurement]
        configs = [config for config, *_ in seen]
        measured = np.log([[turn_s, slow_s] for _, turn_s, slow_s in seen])
        return Surrogate(space, cost, _points(space, cost, configs), measured - _predicted(cost, configs), noise)

    def expected_gains(
        self, configs: Sequence[EngineConfig], rivals: Sequence[EngineConfig], slow_bar_s: float
    ) -> Matrix:
        """By what share each is expected to be faster than the best of the rivals, counted only where it is, times the
        probability that its slow tokens take no more than the bar: constrained expected improvement (Gardner et al.
        2014). The rivals were tried; their best is what is believed of them now, since the luckiest trial was lucky.
        """
        known = self._covariance(self.points, self.points)
        known[np.diag_indices_from(known)] += self.noise**2
        factor = cho_factor(known, lower=True)
        # A mean token is predicted; how much more a slow one takes is seen.
        usual = np.array([0.0, np.median(self.errors[:, 1])])
        weights = cho_solve(factor, self.errors - usual)

        def expected(points: Matrix, predicted: Matrix) -> tuple[Matrix, Matrix]:
            across = self._covariance(points, self.points)
            mean: Matrix = predicted + usual + across @ weights
            left = _DEVIATION**2 - np.einsum("ij,ji->i", across, cho_solve(factor, across.T))
            return mean, np.sqrt(np.maximum(left, np.finfo(np.float64).eps))

        (of_rivals, _), (mean, spread) = (
            expected(_points(self.space, self.cost, group), _predicted(self.cost, group)) for group in (rivals, configs)
        )
        faster = of_rivals[:, 0].min() - mean[:, 0]
        gains: Matrix = faster * norm.cdf(faster / spread) + spread * norm.pdf(faster / spread)
        steady: Matrix = norm.cdf((np.log(slow_bar_s) - mean[:, 1]) / spread)
        worth: Matrix = gains * steady
        return worth

    def _covariance(self, a: Matrix, b: Matrix) -> Matrix:
        knobs = self.space.knobs
        free = sum(len(knob.choices) > 1 for knob in knobs)
        falls = np.array([_ENGINE_FALL if knob.name == "engine" else _FALL / max(1, free) for knob in knobs])
        ordered = np.array([knob.ordered for knob in knobs])
        apart = np.abs(a[:, None, :] - b[None, :, :])
        distance: Matrix = np.where(ordered, apart, apart > 0) @ falls
        return _DEVIATION**2 * np.exp(-distance)


def _predicted(cost: CostModel, configs: Sequence[EngineConfig]) -> Matrix:
    """Logarithms of a turn's and a token's seconds, a row a configuration."""
    return np.log([cost.times_s(config) for config in configs])


def _points(space: Space, cost: CostModel, configs: Sequence[EngineConfig]) -> Matrix:
    rows = []
    for config in configs:
        params = space.params_of(config, cost.memory)
        rows.append([_position(knob, params[knob.name]) for knob in space.knobs])
    return np.array(rows, dtype=np.float64)


def _position(knob: Knob, stored: Choice) -> float:
    return knob.choices.index(knob.decode(stored)) / max(1, len(knob.choices) - 1)
