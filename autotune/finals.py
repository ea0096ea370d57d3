"""Who duels whom, and in which order."""

from itertools import islice

from moetune.autotune.duel import BLOCK, Duel, fight
from moetune.autotune.evaluate import Session
from moetune.autotune.record import Origin, TrialRecord
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement

# Screening noise: a candidate this much slower than the baseline in its one trial may still be the faster one.
_SCREENING_NOISE = 1.02


def finalists(session: Session) -> tuple[TrialRecord, ...]:
    """The best trials that are no baseline and could still beat the best one."""
    baseline = session.best_baseline
    if baseline is None or baseline.turn_s is None:
        return ()
    bar = baseline.turn_s * _SCREENING_NOISE
    baselines = {r.config for r in session.study.records if r.origin is Origin.BASELINE}
    rivals = [r for r in session.study.records if r.config not in baselines and r.turn_s is not None]
    rivals.sort(key=lambda record: (record.turn_s, record.number))
    near = (r for r in rivals if r.turn_s is not None and r.turn_s <= bar)
    return tuple(islice(session.admitted(near), session.request.finalists))


def run_finals(session: Session) -> tuple[Duel, ...]:
    """Duel the finalists one after the other until one wins; every block is kept in the study.

    A duel fought in an earlier run of the same study stands: fighting again until the outcome pleases would name false
    winners.
    """
    baseline = session.best_baseline
    rivals = finalists(session)
    earlier = [BLOCK.validate_json(block) for block in session.study.blocks]
    duels: list[Duel] = []
    for rival in rivals:
        if baseline is None:
            break
        duel = fight(
            baseline.name,
            baseline.config,
            rival.config,
            measure=lambda config: _measure(session, config),
            turn_s=lambda m: m.turn_s(len(session.trace.prompt_tokens), len(session.trace.reply_tokens)),
            blocks=session.request.duel_blocks,
            margin=session.request.margin,
            comparisons=len(rivals),
            progress=session.events.duel_progress,
            earlier=[b for b in earlier if (b.baseline_config, b.candidate_config) == (baseline.config, rival.config)],
            keep=lambda block: session.study.keep_block(BLOCK.dump_json(block).decode()),
        )
        duels.append(duel)
        if duel.won:
            break
    return tuple(duels)


def _measure(session: Session, config: EngineConfig) -> Measurement | Failed:
    """Once more after a failure: a single stray one in a dozen fresh launches must not void the whole duel."""
    outcome = session.measure(config, session.longest_s)
    return session.measure(config, session.longest_s) if isinstance(outcome, Failed) else outcome
