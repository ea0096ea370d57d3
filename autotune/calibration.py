"""Corrects the estimate of compute buffers by what trials measured; everything else in a footprint is exact."""

from dataclasses import dataclass
from statistics import linear_regression

# One trial shows too little of how buffers grow to be believed to the byte.
_CAUTION = 1.1
_STEEPEST = 2.0


@dataclass(frozen=True)
class Calibration:
    """seen: (estimated, measured) buffer bytes of each trial. Never corrects below what one of them measured."""

    seen: tuple[tuple[int, int], ...] = ()

    def add(self, estimated_bytes: int, measured_bytes: int) -> "Calibration":
        """With one more trial."""
        return Calibration((*self.seen, (estimated_bytes, max(0, measured_bytes))))

    def correct(self, estimated_bytes: int) -> int:
        """measured ~ base + slope * estimated: a driver's fixed share, and what grows with batch and context."""
        if not self.seen:
            return estimated_bytes
        slope = self._slope()
        base = max(0.0, *(measured - slope * estimated for estimated, measured in self.seen))
        # Rounded up: half a byte too few would already be less than was seen.
        return int(base + slope * estimated_bytes) + 1

    def _slope(self) -> float:
        estimates = [estimated for estimated, _ in self.seen]
        if len(set(estimates)) < 2:
            return min(1.0, _CAUTION * max(measured / max(1, estimated) for estimated, measured in self.seen))
        fitted = linear_regression(estimates, [measured for _, measured in self.seen]).slope
        return min(_STEEPEST, max(0.0, fitted))
