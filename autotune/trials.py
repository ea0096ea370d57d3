"""The sampled part of the search: seeds first, then what the sampler proposes, until the budget is spent."""

from dataclasses import replace

from moetune.autotune.evaluate import Session, fastest
from moetune.autotune.record import Origin
from moetune.autotune.seeds import seeds

# So many proposals in a row that were measured before or cannot fit: the space is as good as used up.
_MOST_FRUITLESS = 25


def measure_trials(session: Session) -> None:
    """Run the trials that are left of `n_trials`; those of an earlier, interrupted search count."""
    _evaluate_seeds(session)
    fruitless = 0
    while trials_left(session) and fruitless < _MOST_FRUITLESS:
        number, params = session.study.ask()
        config = session.space.config_of(params, session.memory)
        known = session.find(config)
        if known is not None:
            session.study.repeat(number, known)
            fruitless += 1
        else:
            launched = session.run(number, config, Origin.SAMPLER).launched
            fruitless = 0 if launched else fruitless + 1


def _evaluate_seeds(session: Session) -> None:
    """A resumed search knows more about memory and would propose other slots: it only completes the number."""
    if any(record.origin is Origin.SAMPLER for record in session.study.records):
        return
    done = sum(record.origin is Origin.SEED for record in session.study.records)
    wanted = max(1, session.request.n_trials // 2)
    for config in seeds(session.space, session.memory, session.cost, wanted)[done:]:
        if trials_left(session) and session.find(config) is None:
            session.evaluate(config, Origin.SEED)
    _evaluate_combination(session)


def _evaluate_combination(session: Session) -> None:
    """The best configuration so far with whatever helped stock llama.cpp by itself: threads, batch, KV types."""
    best = session.best
    stock = fastest([record for record in session.study.records if record.config.cache is None])
    if best is None or stock is None or not trials_left(session):
        return
    like = stock.config
    combined = replace(
        best.config, n_threads=like.n_threads, n_ubatch=like.n_ubatch, type_k=like.type_k, type_v=like.type_v
    )
    if session.find(combined) is None and session.memory.fits_fast(combined):
        session.evaluate(combined, Origin.SEED)


def trials_left(session: Session) -> int:
    """How many of `n_trials` are still to run; what never ran costs nothing and does not count."""
    done = sum(record.origin is not Origin.BASELINE and record.launched for record in session.study.records)
    return max(0, session.request.n_trials - done)
