"""The configuration most worth the next trial by all that is known: predictions, and what trials made of them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moetune.autotune.evaluate import Session, fastest
from moetune.autotune.neighbours import filled, neighbours
from moetune.autotune.seeds import KV_LEAST_GAIN
from moetune.autotune.surrogate import Surrogate
from moetune.engine.config import EngineConfig

# Points of the space looked at each time, besides the neighbours of the best.
_POINTS = 256
# The best with slots and the best without both have neighbours worth a look while one is at most so many times as slow.
_NEAR = 1.15


def likeliest(session: Session) -> EngineConfig | None:
    """The one with the most to gain for a second of measuring; None where nothing is left that fits and was not tried.

    The same again when a search is repeated.
    """
    baseline = session.best_baseline
    known = {record.config for record in session.study.records}
    pool = [config for config in dict.fromkeys(_pool(session, len(known))) if _may_be_tried(session, config)]
    pool = [config for config in pool if config not in known]
    if not pool or baseline is None or baseline.measurement is None:
        return None
    admitted = [record for record in session.gate.admissible(session.study.records) if record.measurement]
    rivals = [record.config for record in admitted if not session.stalls([record])]
    cost = replace(session.cost, memory=session.memory)
    surrogate = Surrogate.of(session.space, cost, session.study.records, session.screening_noise)
    bar_s = (1 + session.request.rules.margin) * baseline.measurement.slow_token_s
    gains = surrogate.expected_gains(pool, rivals or [baseline.config], bar_s)
    worth = [_worth(session, config, float(gain)) for config, gain in zip(pool, gains, strict=True)]
    return pool[int(np.argmax(worth))]


def _pool(session: Session, at: int) -> Iterator[EngineConfig]:
    space, memory = session.space, session.memory
    rng = np.random.default_rng(session.request.seed + at)
    for _ in range(_POINTS):
        point = {knob.name: knob.encode(knob.choices[int(rng.integers(len(knob.choices)))]) for knob in space.knobs}
        yield space.config_of(point, memory)
    for base in _bases(session):
        yield filled(space, memory, base)
        for beside in neighbours(space, memory, base):
            yield beside
            yield filled(space, memory, beside)


def _bases(session: Session) -> list[EngineConfig]:
    admitted = session.gate.admissible(session.study.records)
    sorts = (fastest([record for record in admitted if record.config.has_slots is slots]) for slots in (True, False))
    found = sorted((best.turn_s, best.number, best.config) for best in sorts if best and best.turn_s)
    return [config for turn_s, _, config in found if turn_s <= _NEAR * found[0][0]]


def _may_be_tried(session: Session, config: EngineConfig) -> bool:
    # The plugin without slots is a baseline, and never faster than stock.
    idle = config.cache is not None and not config.has_slots
    if idle or max(session.memory.excess_bytes(config)) > 0 or session.study.runs_elsewhere(config):
        return False
    report = session.gate.known(config)
    return report is None or report.passed


def _worth(session: Session, config: EngineConfig, gain: float) -> float:
    """Expected gain a second; a load counts, and so does having the quality of KV types measured."""
    records, default = session.study.records, session.space.default
    if (config.type_k, config.type_v) != (default.type_k, default.type_v):
        gain -= KV_LEAST_GAIN
    load_s = max((record.measurement.load_s for record in records if record.measurement), default=0.0)
    stays = records[-1].config.placement == config.placement
    return gain / (session.usual_trial_s() + (0.0 if stays else load_s))
