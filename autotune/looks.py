"""Further looks at the trials that noise cannot tell from the fastest: luck alone must not choose the finalists."""

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import geometric_mean

from moetune.autotune.evaluate import Session
from moetune.autotune.record import Origin, TrialRecord
from moetune.engine.config import EngineConfig

LOOKS = 3
MOST_CLOSE = 12
# The fastest of many trials was lucky, too: so many go on whatever the noise is said to be.
FEWEST = 3


@dataclass(frozen=True)
class Rival:
    """A configuration that is no baseline, by its first trial. turn_s: geometric mean over its looks. stalls: by
    these, see `Session.stalls`.
    """

    record: TrialRecord
    looks: int
    turn_s: float
    stalls: bool


def rivals(session: Session) -> list[Rival]:
    """All that could still beat the best baseline and are not known to be outside the quality gate, fastest first."""
    best = session.best_baseline
    if best is None or best.turn_s is None:
        return []
    baselines = {record.config for record in session.study.records if record.origin is Origin.BASELINE}
    looks = defaultdict[EngineConfig, list[TrialRecord]](list)
    for record in session.gate.admissible(session.study.records):
        if record.turn_s is not None and record.config not in baselines:
            looks[record.config].append(record)
    found = [_rival(session, of_one) for of_one in looks.values()]
    bar_s = (1 + session.screening_noise) * best.turn_s
    return sorted((r for r in found if r.turn_s <= bar_s), key=lambda rival: (rival.turn_s, rival.record.number))


def _rival(session: Session, looks: list[TrialRecord]) -> Rival:
    turn_s = geometric_mean([record.turn_s for record in looks if record.turn_s])
    return Rival(looks[0], len(looks), turn_s, session.stalls(looks))


def close(session: Session) -> list[Rival]:
    """Those that luck alone may have kept from being the fastest, that one included; first what does not stall."""
    known = rivals(session)
    steady = [rival for rival in known if not rival.stalls]
    bars_s = [(1 + session.screening_noise / math.sqrt(rival.looks)) * known[0].turn_s for rival in known]
    near = [rival for rival, bar_s in zip(known, bars_s, strict=True) if rival.turn_s <= bar_s]
    chosen = dict.fromkeys([*known[:FEWEST], *steady[:FEWEST], *near])
    return sorted(chosen, key=lambda rival: (rival.stalls, rival.turn_s, rival.record.number))


def look_again(session: Session) -> None:
    """Measure the closest again, all of them once before any twice, until no more are left than may race.

    What an earlier run of the study looked at again stands, unless trials have come since.
    """
    trials = [record for record in session.study.records if record.origin is not Origin.BASELINE]
    if trials and trials[-1].origin is Origin.LOOK:
        return
    for look in range(2, LOOKS + 1):
        contenders = close(session)[:MOST_CLOSE]
        if look > 2 and len(contenders) <= session.request.finalists:
            return
        # Those that share a placement one after the other: none of them needs the model loaded anew.
        for rival in sorted(contenders, key=lambda rival: repr(rival.record.config.placement)):
            if session.time_left_s() <= 0:
                return
            if rival.looks < look:
                session.evaluate(rival.record.config, Origin.LOOK)
