"""How the layers that lie on devices are dealt out among several of them."""

from dataclasses import replace
from itertools import accumulate, pairwise

from moetune.autotune.tier import FastTier
from moetune.engine.config import EngineConfig


def spread_layers(
    config: EngineConfig, tiers: tuple[FastTier, ...], n_layers: int, main_percent: int | None
) -> EngineConfig:
    """`config` with its layers on `config.device` and the other tiers, in whole layers, the first ones on that device.

    main_percent: of the layers, how many that device gets; None is its share of all memory, as llama.cpp would
    divide them. The others get the rest in proportion to their memory. With all on one device the others take no part.
    """
    placed = min(config.gpu_layers, n_layers + 1)
    main = [tier for tier in tiers if tier.name == config.device]
    others = [tier for tier in tiers if tier.name != config.device]
    if not main or not others or placed == 0:
        return replace(config, more_devices=(), tensor_split=())
    sizes = [tier.static_limit_bytes for tier in others]
    if main_percent is None:
        own = main[0].static_limit_bytes
        on_main = round(placed * own / max(1, own + sum(sizes)))
    else:
        on_main = max(1, round(placed * main_percent / 100))
    split = (on_main, *_deal(placed - on_main, sizes))
    taking_part = [(tier.name, layers) for tier, layers in zip(others, split[1:], strict=True) if layers]
    if not taking_part:
        return replace(config, more_devices=(), tensor_split=())
    return replace(
        config,
        more_devices=tuple(name for name, _ in taking_part),
        tensor_split=(on_main, *(layers for _, layers in taking_part)),
    )


def _deal(layers: int, sizes: list[int]) -> list[int]:
    """Whole layers in proportion to `sizes`, none lost to rounding."""
    total = max(1, sum(sizes))
    ends = [0, *(round(layers * end / total) for end in accumulate(sizes))]
    return [later - earlier for earlier, later in pairwise(ends)]
