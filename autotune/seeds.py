"""The configurations that the cost model expects most of, as different from each other as their speeds allow."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np

from moetune.autotune.cost import CostModel
from moetune.autotune.knobs import Choice
from moetune.autotune.memory import MemoryModel
from moetune.autotune.space import Space
from moetune.engine.config import CacheKnobs, EngineConfig, Policy
from moetune.hardware import assumptions

# Points looked at before the search by hand, one knob after the other, from the best of each sort.
_POINTS = 400
_ROUNDS = 3
# A setting stays at its default unless it promises so much: predictions of less mean nothing. Other KV types have their
# quality measured, which takes as long as many trials.
_LEAST_GAIN = 0.01
KV_LEAST_GAIN = 0.03
# A configuration predicted this much slower than the best is no seed, however different it is.
_WORTH = 1.5
# Each costs a reload; those that differ by less than a quarter of the layers count as one.
_MOST_PLACEMENTS = 3
_POLICY_KNOBS = ("interval_tokens", "hysteresis", "promotions", "policy")
# What the model says nothing about either, and few gain from: left at its default, for the sampler to try.
_UNKNOWN_KNOBS = ("load_mode", "flash_attn", "spread", "reserve", "prefill", "ahead")

Point = dict[str, Choice]


def seeds(
    space: Space, memory: MemoryModel, cost: CostModel, n: int, tried: Collection[EngineConfig]
) -> tuple[EngineConfig, ...]:
    """The best `n` that were not tried yet; those that share a placement stand together, to share a load.

    Asked again after every few trials, since `cost` learns from them.
    """
    return _by_placement(best(space, memory, _hopeful(cost), n, tried))


def best(
    space: Space, memory: MemoryModel, cost: CostModel, n: int, tried: Collection[EngineConfig] = ()
) -> tuple[EngineConfig, ...]:
    """The `n` predicted-fastest configurations that fit, with slots and without, as diverse as may be.

    tried: left out. The fastest first, of 400 points of the space and what hill-climbing makes of the fastest of each
    sort. What the model cannot tell apart, how the cache's policy is set, is varied over the picks.
    """
    cost = replace(cost, memory=memory)
    known = _Known(space, memory, cost)
    for point in _points(space, memory):
        known.add(point)
    for point in known.fastest_of_each_sort():
        _climb(space, known, point)
    known_alike = set(map(_bare, tried))
    ranked = [(turn_s, config) for turn_s, config in known.ranked() if _bare(config) not in known_alike]
    picks = _varied(space, _diverse(ranked, space.default, n), sum(config.has_slots for config in tried))
    return tuple(dict.fromkeys(config for config in picks if config not in tried))


def _hopeful(cost: CostModel) -> CostModel:
    """Without the cost of a layer with slots where that is only assumed: a trial will tell, a plan must not promise."""
    if assumptions.CACHED_LAYER_US not in cost.figures.assumed:
        return cost
    return replace(cost, figures=replace(cost.figures, cached_s=0.0))


def _bare(config: EngineConfig) -> EngineConfig:
    """What the model can tell apart."""
    cache = config.cache
    return config if cache is None else replace(config, cache=CacheKnobs(cache.slots, budget_bytes=cache.budget_bytes))


class _Known:
    """Seconds a turn of every configuration that fits, as predicted and a little more for each setting that is not at
    its default, and a point it came from.
    """

    def __init__(self, space: Space, memory: MemoryModel, cost: CostModel) -> None:
        self._space, self._memory, self._cost = space, memory, cost
        self._turns: dict[EngineConfig, float] = {}
        self._points: dict[EngineConfig, Point] = {}

    def add(self, point: Point) -> float:
        """The point's predicted turn; infinite where it does not fit."""
        config = self._space.config_of(point, self._memory)
        if config not in self._turns:
            # The plugin without slots is a baseline, and never faster than stock.
            fits = max(self._memory.excess_bytes(config)) <= 0 and (config.cache is None or config.has_slots)
            least = (1 + _LEAST_GAIN) ** _settings_changed(config, self._space.default)
            if (config.type_k, config.type_v) != (self._space.default.type_k, self._space.default.type_v):
                least *= 1 + KV_LEAST_GAIN
            self._turns[config] = self._cost.turn_s(config) * least if fits else float("inf")
            self._points[config] = point
        return self._turns[config]

    def ranked(self) -> list[tuple[float, EngineConfig]]:
        fitting = [(turn_s, config) for config, turn_s in self._turns.items() if turn_s < float("inf")]
        return sorted(fitting, key=lambda pair: pair[0])

    def fastest_of_each_sort(self) -> list[Point]:
        first: dict[object, EngineConfig] = {}
        for _, config in self.ranked():
            first.setdefault((config.has_slots, config.gpu_layers > 0, config.type_k, config.type_v), config)
        return [self._points[config] for config in first.values()]


def _points(space: Space, memory: MemoryModel) -> Iterator[Point]:
    """Random ones, always the same; knobs without a prediction at their defaults."""
    rng = np.random.default_rng(0)
    usual = space.params_of(replace(space.default, cache=CacheKnobs(slots=1)), memory)
    for _ in range(_POINTS):
        yield {
            knob.name: usual[knob.name]
            if knob.name in _POLICY_KNOBS + _UNKNOWN_KNOBS
            else knob.encode(knob.choices[int(rng.integers(len(knob.choices)))])
            for knob in space.knobs
        }


def _climb(space: Space, known: _Known, start: Point) -> None:
    """Each knob in turn to its best value, until nothing gets better."""
    point, best_s = start, known.add(start)
    for _ in range(_ROUNDS):
        before_s = best_s
        for knob in space.knobs:
            if knob.name in _POLICY_KNOBS + _UNKNOWN_KNOBS:
                continue
            tried = [{**point, knob.name: knob.encode(choice)} for choice in knob.choices]
            turns = [known.add(candidate) for candidate in tried]
            if min(turns) < best_s:
                best_s = min(turns)
                point = tried[turns.index(best_s)]
        if best_s >= before_s:
            return


def _diverse(ranked: list[tuple[float, EngineConfig]], default: EngineConfig, n: int) -> list[EngineConfig]:
    """A third at least with slots and a third without, where both fit: the model may be wrong about either."""
    turns = {config: turn_s for turn_s, config in ranked}
    sides = [[config for config in turns if config.has_slots is slots] for slots in (True, False)]
    picks = [_unlike(side, turns, default, n) for side in sides if side]
    sure = [config for side in picks for config in side[: n // 3]]
    others = sorted((config for side in picks for config in side[n // 3 :]), key=lambda config: turns[config])
    # The usual one first: where time is short it may be the only one.
    return sorted([*sure, *others][:n], key=lambda config: (not _is_usual(config, default), turns[config]))


def _unlike(
    side: list[EngineConfig], turns: Mapping[EngineConfig, float], default: EngineConfig, n: int
) -> list[EngineConfig]:
    """The fastest with every setting and the placement at their defaults, which needs no luck to be good; the fastest;
    the fastest with the default KV types; then the diverse.

    Each of these is unlike all before it; where too few are, ever more alike.
    """
    plain = [config for config in side if (config.type_k, config.type_v) == (default.type_k, default.type_v)]
    usual = [config for config in plain if _is_usual(config, default)]
    firsts = list(dict.fromkeys(config for of in (usual, side, plain) for config in of[:1]))
    near = [config for config in side if turns[config] <= _WORTH * turns[side[0]]]
    placed = _placements([*firsts, *near])
    worth = [config for config in near if _placement(config) in placed]
    for least in (3, 2, 1):
        picked = list(firsts)
        for config in worth:
            if all(_differences(config, other) >= least for other in picked):
                picked.append(config)
        if len(picked) >= n:
            break
    return picked[:n]


def _placements(configs: list[EngineConfig]) -> list[tuple[int, int]]:
    """A few placements far from each other, that of the fastest first."""
    found: list[tuple[int, int]] = []
    for placement in map(_placement, configs):
        if len(found) < _MOST_PLACEMENTS and all(_far(placement, other) for other in found):
            found.append(placement)
    return found


def _placement(config: EngineConfig) -> tuple[int, int]:
    return config.gpu_layers, config.ram_expert_layers


def _far(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return any(abs(x - y) > max(x, y) / 4 for x, y in zip(a, b, strict=True))


def _is_usual(config: EngineConfig, default: EngineConfig) -> bool:
    return _placement(config) == _placement(default) and not _settings_changed(config, default)


def _settings_changed(config: EngineConfig, default: EngineConfig) -> int:
    """Settings that are not at their default; where layers, experts and slots lie is no setting."""
    packed = config.cache.repack if config.cache is not None else config.repack != default.repack or config.no_host
    names = ("type_k", "type_v", "n_threads", "batch_threads", "n_ubatch", "load_mode", "flash_attn")
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    return len(changed) + int(packed)


def _differences(a: EngineConfig, b: EngineConfig) -> int:
    """Respects in which two configurations differ; engine and placement count double, for a load and its own code."""
    slots_a, slots_b = (c.cache.slots if c.cache else 0 for c in (a, b))
    return sum(
        (
            2 * (a.has_slots != b.has_slots),
            2 * (_placement(a) != _placement(b)),
            (a.type_k, a.type_v) != (b.type_k, b.type_v),
            a.n_threads != b.n_threads,
            a.n_ubatch != b.n_ubatch,
            a.repack != b.repack,
            abs(slots_a - slots_b) > max(slots_a, slots_b) / 4,
        )
    )


def _varied(space: Space, picks: list[EngineConfig], at: int) -> Iterator[EngineConfig]:
    """How fast the residents of the slots may change, and how misses are laid out, another way in each pick; the usual
    way first. at: how many were tried before.
    """
    # A static set needs slots that recorded routing has filled; the sampler may try it.
    choices = [tuple(c for c in space.choices(name) if c != Policy.STATIC) for name in _POLICY_KNOBS]
    ways = list(product(*choices, space.choices("repack") or (False,)))
    ways = [ways[i] for i in np.random.default_rng(0).permutation(len(ways))]
    usual = (*(getattr(CacheKnobs(slots=1), name) for name in _POLICY_KNOBS), False)
    nearest = min(ways, key=lambda way: sum(a != b for a, b in zip(way, usual, strict=True)), default=usual)
    ways.sort(key=lambda way: way != nearest)
    for config in picks:
        if config.cache is None or not config.has_slots or not ways:
            yield config
            continue
        interval, hysteresis, promotions, policy, repack = ways[at % len(ways)]
        knobs = replace(
            config.cache,
            interval_tokens=int(interval),
            hysteresis=float(hysteresis),
            promotions=int(promotions),
            policy=Policy(str(policy)),
            repack=bool(repack),
        )
        at += 1
        yield replace(config, cache=knobs)


def _by_placement(configs: Iterable[EngineConfig]) -> tuple[EngineConfig, ...]:
    grouped: dict[tuple[object, ...], list[EngineConfig]] = {}
    for config in configs:
        grouped.setdefault(config.placement, []).append(config)
    return tuple(config for group in grouped.values() for config in group)
