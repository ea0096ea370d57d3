"""Few combinations that hold every pair of values: most mistakes need two things to meet, hardly any needs four."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
_CANDIDATES = 60


def covering_rows(factors: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows of one value a factor; every two values of different factors meet in one of them.

    The same factors give the same rows.
    """
    rng = random.Random(1)
    missing = {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(factors, 2)
        for x, y in itertools.product(factors[a], factors[b])
    }
    rows: list[Row] = []
    while missing:
        seed = dict(max(missing, key=lambda pair: sorted(map(repr, pair))))
        drawn = ({n: seed.get(n, rng.choice(values)) for n, values in factors.items()} for _ in range(_CANDIDATES))
        best = max(drawn, key=lambda row: len(_pairs_of(row) & missing))
        rows.append(best)
        missing -= _pairs_of(best)
    return rows


def _pairs_of(row: Row) -> set[frozenset[tuple[str, Any]]]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
