"""The sampled part of the search: seeds first, then what the sampler proposes, until the budget is spent."""

from collections.abc import Collection

from moetune.autotune.baselines import further_looks
from moetune.autotune.evaluate import Session, fastest
from moetune.autotune.likely import likeliest
from moetune.autotune.looks import FEWEST, LOOKS, MOST_CLOSE
from moetune.autotune.neighbours import filled
from moetune.autotune.noise import ROUNDS as NOISE_ROUNDS
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.seeds import seeds
from moetune.autotune.sequential import fewest_that_prove
from moetune.autotune.study import Proposal
from moetune.engine.config import EngineConfig

# So many proposals in a row that were measured before or cannot fit: the space is as good as used up.
_MOST_FRUITLESS = 25
# So many of the likeliest, and so many of the sampler's, in turn: the latter look where nobody expects anything.
_STEPS = 8
_PROPOSALS = 2
# So many in a row that were measured before end a turn.
_MOST_REPEATED = 4
# What the cost model is asked for, a few at once to share loads: more of what it expects most of would be more alike.
_MOST_SEEDS = 8
_SEED_BATCH = 4
# So many times the slots are worth another trial, which needs no reload.
_WORTH_FILLING = 1.1
# Measurements that a finalist's twins in stock llama.cpp take, further looks at them included.
_TWINS = 6


def measure_trials(session: Session) -> None:
    """Run the trials that are left of `n_trials`; those of an earlier, interrupted search count."""
    _evaluate_seeds(session)
    fruitless = 0
    while _may_sample(session) and fruitless < _MOST_FRUITLESS:
        _evaluate_likely(session)
        if not _may_sample(session):
            break
        batch, repeated = _proposals(session)
        fruitless += repeated
        for config in _by_placement(session, batch):
            if not may_try(session):
                session.study.abandon(batch[config].number, "not run: the search was over")
                continue
            launched = session.run(batch[config].number, config, batch[config].origin).launched
            fruitless = 0 if launched else fruitless + 1


def _evaluate_likely(session: Session) -> None:
    """What is expected to gain most, one after the other, since each teaches what to try next."""
    for _ in range(_STEPS if session.study.alone else 1):
        if not _may_sample(session) or session.study.left_behind:
            return
        config = likeliest(session)
        if config is None:
            return
        session.evaluate(config, Origin.SAMPLER)


def _may_sample(session: Session) -> bool:
    """Whether a trial is left for this worker; while others are at the last ones it waits, since they may die."""
    while True:
        session.catch_up()
        left, elsewhere = trials_left(session), session.study.running_elsewhere
        if left > elsewhere or not left + elsewhere or session.time_left_s() <= 0:
            return may_try(session)
        session.study.wait_for_others()


def _proposals(session: Session) -> tuple[dict[EngineConfig, Proposal], int]:
    """A few new configurations, and how many proposals were none. Beside other workers one: the rest would wait."""
    batch: dict[EngineConfig, Proposal] = {}
    fruitless = 0
    most = min(_PROPOSALS, trials_left(session)) if session.study.alone else 1
    while len(batch) < most and fruitless < _MOST_REPEATED:
        proposal = session.study.propose()
        config = session.space.config_of(proposal.params, session.memory)
        known = session.find(config)
        if known is not None:
            session.study.repeat(proposal.number, known)
            fruitless += 1
        elif config in batch or not session.study.take(proposal.number, config):
            session.study.abandon(proposal.number, "proposed twice at once")
            fruitless += 1
        else:
            batch[config] = proposal
    return batch, fruitless


def may_try(session: Session) -> bool:
    """Whether trials, patience and time are left, with enough of the last for this trial and a short race."""
    needed_s = session.usual_trial_s() + _race_s(session)
    return bool(trials_left(session)) and not _out_of_patience(session) and session.time_left_s() > needed_s


def trials_left(session: Session) -> int:
    """How many of `n_trials` are still to run; what never ran costs nothing and does not count."""
    return max(0, session.request.n_trials - len(_tried(session)))


def _tried(session: Session) -> list[TrialRecord]:
    return [r for r in session.study.records if r.origin in (Origin.SEED, Origin.SAMPLER) and r.launched]


def _out_of_patience(session: Session) -> bool:
    """Whether the last `patience` trials brought no gain worth having."""
    tried = session.gate.admissible(_tried(session))
    before, late = tried[: -session.request.patience], tried[-session.request.patience :]
    best, best_late = fastest(before), fastest(late)
    if best is None or best.turn_s is None:
        return False
    gain = 1 + session.request.rules.margin
    return best_late is None or best_late.turn_s is None or best_late.turn_s * gain > best.turn_s


def _race_s(session: Session) -> float:
    """What noise, further looks, twins, and the shortest race that can prove anything would take, mostly in fresh
    processes; 0 without rivals.
    """
    best, baseline = session.best, session.best_baseline
    if session.request.budget_s is None or best is None or baseline is None or baseline.turn_s is None:
        return 0.0
    noise = 1 + session.screening_noise
    beating = [r for r in _tried(session) if r.turn_s is not None and r.turn_s <= noise * baseline.turn_s]
    if not beating or best.turn_s is None:
        return 0.0
    near = sum(r.turn_s is not None and r.turn_s <= noise * best.turn_s for r in beating)
    racing = min(session.request.finalists, max(near, min(FEWEST, len(beating))))
    rounds = fewest_that_prove(session.request.rules.risk / racing)
    again = min(MOST_CLOSE, max(near, FEWEST), len(beating))
    looks = further_looks(session) + _TWINS * any(r.config.has_slots for r in beating)
    load_s = max((r.measurement.load_s for r in session.study.records if r.measurement), default=0.0)
    best_s, baseline_s = (
        max(0.0, r.wall_s - (r.measurement.load_s if r.measurement else 0.0)) for r in (best, baseline)
    )
    measuring_s = baseline_s * (2 * (rounds + NOISE_ROUNDS) + looks)
    measuring_s += best_s * (2 * rounds * racing + (LOOKS - 1) * again)
    loads = rounds * (1 + 2 * racing) + NOISE_ROUNDS + looks + len({r.config.placement for r in beating})
    return measuring_s + loads * load_s


def _by_placement(session: Session, batch: Collection[EngineConfig]) -> list[EngineConfig]:
    """Those that need no reload first, the rest with their like."""
    loaded = session.study.records[-1].config.placement if session.study.records else None
    order = list(dict.fromkeys([loaded, *(config.placement for config in batch)]))
    return sorted(batch, key=lambda config: order.index(config.placement))


def _evaluate_seeds(session: Session) -> None:
    """A resumed search knows more about memory and would propose other slots: it only completes the number."""
    if any(record.origin is Origin.SAMPLER for record in session.study.records):
        return
    wanted = max(1, min(_MOST_SEEDS, session.request.n_trials // 2))
    while may_try(session):
        tried = {record.config for record in session.study.records}
        done = sum(record.origin is Origin.SEED and record.launched for record in session.study.records)
        earlier = [config for config in session.earlier if config not in tried]
        batch = (*earlier, *seeds(session.space, session.memory, session.cost, _SEED_BATCH, tried))[
            : min(_SEED_BATCH, wanted - done)
        ]
        if done >= wanted or not batch:
            break
        planned_with = session.memory
        for planned in batch:
            # The trials before it may have taught how much room there really is.
            params = session.space.params_of(planned, planned_with)
            config = session.space.config_of(params, session.memory)
            # One that another worker is at comes back by itself if that worker dies.
            if may_try(session) and not session.study.runs_elsewhere(config) and session.find(config) is None:
                session.evaluate(config, Origin.SEED)
                _evaluate_filled(session, config)
        if len(session.study.records) == len(tried):
            break
    _evaluate_combination(session)


def _evaluate_filled(session: Session, config: EngineConfig) -> None:
    """Once more where that trial taught that more slots fit than it was given."""
    full = filled(session.space, session.memory, config)
    before, now = (c.cache.slots if c.cache is not None else 0 for c in (config, full))
    if now >= _WORTH_FILLING * before > 0 and may_try(session) and session.find(full) is None:
        session.evaluate(full, Origin.SEED)


def _evaluate_combination(session: Session) -> None:
    """The best with slots so far, with whatever helped stock llama.cpp by itself: threads, batch, KV types.

    As many slots as fit are taken anew: other buffers leave other room.
    """
    cached = fastest([record for record in session.study.records if record.config.has_slots])
    stock = fastest([record for record in session.study.records if record.config.cache is None])
    if cached is None or stock is None or not may_try(session):
        return
    combined = cached.config.tuned_like(stock.config)
    config = session.space.config_of(session.space.params_of(combined, session.memory), session.memory)
    if session.find(config) is None:
        session.evaluate(config, Origin.SEED)
