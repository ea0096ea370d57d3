"""Corrects the estimate of compute buffers by what trials measured; everything else in a footprint is exact."""

from dataclasses import dataclass
from functools import cache

from scipy.optimize import linprog

Parts = tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """seen: upper estimates of the parts of a trial's buffers, and the most that such a trial measured, in bytes."""

    seen: tuple[tuple[Parts, int], ...] = ()

    def add(self, parts: Parts, measured_bytes: int) -> "Calibration":
        """With one more trial."""
        seen = dict(self.seen)
        seen[parts] = max(0, measured_bytes, seen.get(parts, 0))
        return Calibration(tuple(sorted(seen.items())))

    def correct(self, parts: Parts) -> int:
        """What trials with the same estimate measured at most; without one, the most bytes that agree with every trial.

        A buffer is taken as a driver's fixed share plus an unknown share, at most all, of each estimated part: the
        largest sum that no trial contradicts is a linear programme. What trials measured above it is added.
        """
        known = dict(self.seen).get(parts)
        if known is not None:
            return known
        return _most(self.seen, parts) + _missed(self.seen) if self.seen else sum(parts)


@cache
def _missed(seen: tuple[tuple[Parts, int], ...]) -> int:
    """By how much the trial worst explained by the others exceeded what they allow."""
    return max(measured - _most(seen, parts) for parts, measured in seen)


@cache
def _most(seen: tuple[tuple[Parts, int], ...], parts: Parts) -> int:
    # Scaled by row and by column, since bytes beside tens of gigabytes are more than the solver bears.
    unit = max(1, *parts, *(max(measured, *estimated) for estimated, measured in seen))
    scales = [max(1, *estimated) for estimated, _ in seen]
    solved = linprog(
        [-part / unit for part in (*parts, unit)],
        A_ub=[
            [part / scale for part in (*estimated, unit)] for (estimated, _), scale in zip(seen, scales, strict=True)
        ],
        b_ub=[measured / scale for (_, measured), scale in zip(seen, scales, strict=True)],
        bounds=[*((0.0, 1.0) for _ in parts), (0.0, None)],
    )
    # Each part whole beside the least that any trial measured: more than that, no trial allows.
    bound = sum(parts) + min(measured for _, measured in seen)
    # Rounded up: half a byte too few would already be less than was seen.
    return min(bound, int(-solved.fun * unit) + 1) if solved.success else bound
