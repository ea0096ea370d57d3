"""How the layers that lie on devices are dealt out among several of them."""

from dataclasses import replace
from itertools import accumulate, pairwise

from moetune.autotune.tier import FastTier
from moetune.engine.config import EngineConfig

# Of the layers on devices, how many the first device gets; at 100 the others take no part.
_PERCENTS = tuple(range(10, 101, 10))


def main_percents(tiers: tuple[FastTier, ...]) -> tuple[float, ...]:
    """How much of the layers the device named first may get: round numbers, and its share of all memory."""
    return tuple(sorted({*map(float, _PERCENTS), usual_percent(tiers)}))


def usual_percent(tiers: tuple[FastTier, ...]) -> float:
    """The first device's share of all memory: how llama.cpp would divide the layers."""
    sizes = [tier.static_limit_bytes for tier in tiers]
    return 100 * sizes[0] / sum(sizes) if sum(sizes) else 100.0


def spread_layers(
    config: EngineConfig, tiers: tuple[FastTier, ...], n_layers: int, main_percent: float
) -> EngineConfig:
    """`config` with its layers on `config.device` and the other tiers, in whole layers, the first ones on that device.

    main_percent: of the layers, how many that device gets; the others get the rest in proportion to their memory, and
    a device that gets none takes no part.
    """
    placed = min(config.gpu_layers, n_layers + 1)
    others = [tier for tier in tiers if tier.name != config.device]
    if not others or placed == 0:
        return replace(config, more_devices=(), tensor_split=())
    on_main = max(1, round(placed * main_percent / 100))
    dealt = _deal(placed - on_main, [tier.static_limit_bytes for tier in others])
    more = [(tier.name, layers) for tier, layers in zip(others, dealt, strict=True) if layers]
    if not more:
        return replace(config, more_devices=(), tensor_split=())
    split = (on_main, *(layers for _, layers in more))
    return replace(config, more_devices=tuple(name for name, _ in more), tensor_split=split)


def _deal(layers: int, sizes: list[int]) -> list[int]:
    """Whole layers in proportion to `sizes`, none lost to rounding."""
    total = max(1, sum(sizes))
    ends = [0, *(round(layers * end / total) for end in accumulate(sizes))]
    return [later - earlier for earlier, later in pairwise(ends)]


def with_layers(config: EngineConfig, gpu_layers: int, tiers: tuple[FastTier, ...], n_layers: int) -> EngineConfig:
    """`config` with so many layers on its devices, dealt out as llama.cpp would."""
    return spread_layers(replace(config, gpu_layers=gpu_layers), tiers, n_layers, usual_percent(tiers))
