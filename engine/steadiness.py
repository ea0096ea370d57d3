"""When warming up is over: neither speed nor hit rate has a trend any more that exceeds noise."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WINDOW_TOKENS = 8
# So many windows must agree. Fewer could not tell a trend from noise.
_WINDOWS = 4
_FLAT_SHARE = 0.03
_FLAT_HIT_RATE = 0.02
_STANDARD_ERRORS = 2.0


@dataclass
class Steadiness:
    """Fed window by window. tg_tps: tokens a second of each window; hit_rates: shares, none without a cache."""

    tg_tps: list[float] = field(default_factory=list)
    hit_rates: list[float] = field(default_factory=list)

    def add(self, seconds: float, hit_rate: float | None) -> None:
        """A window of `WINDOW_TOKENS` tokens."""
        self.tg_tps.append(WINDOW_TOKENS / seconds)
        if hit_rate is not None:
            self.hit_rates.append(hit_rate)

    @property
    def reached(self) -> bool:
        """Whether the last windows are flat."""
        if len(self.tg_tps) < _WINDOWS:
            return False
        speeds, rates = self.tg_tps[-_WINDOWS:], self.hit_rates[-_WINDOWS:]
        steady_rate = len(rates) < _WINDOWS or _is_flat(rates, _FLAT_HIT_RATE)
        return steady_rate and _is_flat(speeds, _FLAT_SHARE * sum(speeds) / len(speeds))


def _is_flat(values: Sequence[float], tolerance: float) -> bool:
    """The fitted line moves by less than `tolerance` over the windows, or by less than its own uncertainty."""
    # Not scipy's regression: its import would take longer than the rest of an engine process's start.
    line, covariance = np.polyfit(range(len(values)), values, 1, cov=True)
    steps = len(values) - 1
    return bool(abs(line[0]) * steps <= max(tolerance, _STANDARD_ERRORS * float(covariance[0, 0]) ** 0.5 * steps))
