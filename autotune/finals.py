"""Who races whom."""

from itertools import islice

from pydantic import ValidationError

from moetune.autotune.evaluate import Session
from moetune.autotune.noise import Noise, measure_noise
from moetune.autotune.race import ROUND, Race, Round, Track, race
from moetune.autotune.record import Origin, TrialRecord
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement
from moetune.errors import ExitCode, MoetuneError

# Screening noise where nothing is known of it: a candidate this much slower in its one trial may still be faster.
_SCREENING_NOISE = 0.02
_STANDARD_ERRORS = 2.0


def calibrate(session: Session) -> Noise | None:
    """Race the best baseline against itself, and say what can be told from noise on this machine."""
    baseline = session.best_baseline
    if baseline is None:
        return None
    noise = measure_noise(baseline.config, _track(session), session.request.rules, _earlier(session))
    if noise is not None:
        session.events.note(
            f"Noise: {noise.within:.1%} within a process, {noise.between:.1%} between processes; the race can tell "
            f"effects from {noise.smallest_effect:.1%} on."
        )
    return noise


def finalists(session: Session) -> tuple[TrialRecord, ...]:
    """The best trials that are no baseline and could still beat the best one."""
    baseline = session.best_baseline
    if baseline is None or baseline.turn_s is None:
        return ()
    noise = max(_SCREENING_NOISE, _STANDARD_ERRORS * session.noise.of_one if session.noise else 0.0)
    bar = baseline.turn_s * (1 + noise)
    baselines = {r.config for r in session.study.records if r.origin is Origin.BASELINE}
    rivals = [r for r in session.study.records if r.config not in baselines and r.turn_s is not None]
    rivals.sort(key=lambda record: (record.turn_s, record.number))
    near = (r for r in rivals if r.turn_s is not None and r.turn_s <= bar)
    return tuple(islice(session.admitted(near), session.request.finalists))


def run_finals(session: Session) -> Race | None:
    """Race the finalists against the best baseline; every round is kept in the study.

    What was raced in an earlier run of the same study stands: racing again until the outcome pleases would name false
    winners.
    """
    baseline, rivals = session.best_baseline, finalists(session)
    if baseline is None or not rivals:
        return None
    return race(
        baseline.name,
        baseline.config,
        [rival.config for rival in rivals],
        track=_track(session),
        rules=session.request.rules,
        earlier=_earlier(session),
    )


def _earlier(session: Session) -> list[Round]:
    try:
        return [ROUND.validate_json(block) for block in session.study.blocks]
    except ValidationError:
        raise MoetuneError(
            "A round of the race that this study keeps is damaged, or of another version of moetune.",
            "Drop the study (`moetune study list`, then `moetune study drop`), or use the version that wrote it.",
            ExitCode.STORAGE,
        ) from None


def _track(session: Session) -> Track:
    return Track(
        measure=lambda config: _measure(session, config),
        turn_s=session.turn_of,
        refresh=session.runner.close,
        conditions=session.conditions,
        keep=lambda entry: session.study.keep_block(ROUND.dump_json(entry).decode()),
        progress=session.events.race_progress,
        may_go_on=lambda: session.time_left_s() > 0,
    )


def _measure(session: Session, config: EngineConfig) -> Measurement | Failed:
    """Once more after a failure: a single stray one in a dozen fresh launches must not void the whole race."""
    outcome = session.measure(config, session.longest_s)
    return session.measure(config, session.longest_s) if isinstance(outcome, Failed) else outcome
