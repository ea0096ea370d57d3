"""How much of a prompt is known already."""

from collections.abc import Sequence


def known_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Tokens that both begin with, all but the last of `wanted` at most: its logits are still to be computed."""
    alike = min(len(held), len(wanted) - 1)
    return next((at for at in range(alike) if held[at] != wanted[at]), alike)
