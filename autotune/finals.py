"""Who races whom."""

from dataclasses import replace
from itertools import islice

from moetune.autotune.evaluate import Session
from moetune.autotune.looks import close
from moetune.autotune.noise import Noise, measure_noise
from moetune.autotune.race import ROUND, Race, Round, Track, race
from moetune.autotune.record import TrialRecord
from moetune.autotune.space import Space
from moetune.autotune.stored import checked
from moetune.autotune.study import LONGEST_RECORD
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, Measurement
from moetune.errors import ExitCode, MoetuneError


def calibrate(session: Session) -> Noise | None:
    """Race the best baseline against itself, and say what can be told from noise on this machine."""
    baseline = session.best_baseline
    if baseline is None:
        return None
    # All finalists share the race's risk.
    rules = session.request.rules
    rules = replace(rules, risk=rules.risk / session.request.finalists)
    noise = measure_noise(baseline.config, _track(session), rules, _earlier(session))
    if noise is not None:
        session.events.note(
            f"Noise: {noise.within:.1%} within a process, {noise.between:.1%} between processes; the race can tell "
            f"effects from {noise.smallest_effect:.1%} on. Drift {noise.drift_a_round:+.1%} a round."
        )
    return noise


def finalists(session: Session) -> tuple[TrialRecord, ...]:
    """The best trials that are no baseline and could still beat the best one; besides the fastest of them those that
    luck alone may have kept from being it.
    """
    admitted = (rival.record for rival in close(session) if session.gate.admits(rival.record.config).passed)
    return tuple(islice(admitted, session.request.finalists))


def run_finals(session: Session) -> Race | None:
    """Race the finalists against the best baseline; every round is kept in the study.

    What was raced in an earlier run of the same study stands: racing again until the outcome pleases would name false
    winners.
    """
    baseline, candidates = session.best_baseline, finalists(session)
    if baseline is None or not candidates:
        return None
    return race(
        baseline.config,
        [candidate.config for candidate in candidates],
        track=_track(session),
        rules=session.request.rules,
        earlier=_earlier(session),
    )


def _earlier(session: Session) -> list[Round]:
    try:
        # A round whose receipt was lost on the way was sent twice.
        return [_round(block, session.space) for block in dict.fromkeys(session.study.blocks)]
    except ValueError:
        raise MoetuneError(
            "A round of the race that this study keeps is damaged, or of another version of moetune.",
            "Drop the study (`moetune study list`, then `moetune study drop`), or use the version that wrote it.",
            ExitCode.STORAGE,
        ) from None


def _round(block: str, space: Space) -> Round:
    if len(block) > LONGEST_RECORD:
        raise ValueError("no round")
    entry = ROUND.validate_json(block)
    return replace(entry, contenders=tuple(checked(config, space) for config in entry.contenders))


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
