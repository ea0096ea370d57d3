"""One search, from a model and a machine to a verdict."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from optuna.samplers import BaseSampler

from moetune.autotune.baselines import confirm_best_baseline, measure_baselines, measure_twin, promote_best_stock
from moetune.autotune.cost import cost_model
from moetune.autotune.earlier import earlier_best
from moetune.autotune.evaluate import Session
from moetune.autotune.events import Phase, SearchEvents
from moetune.autotune.finals import calibrate, finalists, run_finals
from moetune.autotune.identity import identity_of
from moetune.autotune.looks import look_again
from moetune.autotune.memory import memory_of, require_memory
from moetune.autotune.open_study import open_study
from moetune.autotune.quality_gate import open_gate
from moetune.autotune.race import Race
from moetune.autotune.record import Origin
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult, saved_verdict
from moetune.autotune.sampler import sampler_of
from moetune.autotune.space import Space, build_space
from moetune.autotune.trace import RequestShape, build_trace, shape_for
from moetune.autotune.trials import measure_trials, trials_left
from moetune.autotune.verdict import judge
from moetune.engine.measurement import Runner
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.conditions import Conditions, read_conditions
from moetune.hardware.machine import Machine


def search(
    request: SearchRequest,
    runner: Runner,
    machine: Machine,
    model: Model,
    events: SearchEvents,
    conditions: Callable[[], Conditions] = read_conditions,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Find the fastest configuration and prove it; Ctrl-C keeps what is measured and returns what is known.

    Raises MoetuneError (DEVICE, MEMORY, STORAGE, BUSY, MODEL, USAGE) before the first launch where the search cannot
    be done at all. The caller closes the runner.
    """
    began_s = clock()
    events.phase(Phase.PREPARE, 0)
    _check_context(request, model)
    memory = memory_of(model, machine, request.device)
    space = build_space(model, machine.cpu, memory, request)
    require_memory(memory, space.default, request.allow_overcommit)
    shape = shape_for(request.workload, request.n_ctx)
    _explain(space, shape, request, events)
    gate = open_gate(request, model, runner, events.note)
    sampler = partial(_sampler, request)
    identity = identity_of(request, machine, model, space)
    with open_study(request.state_dir, identity, space, sampler, request.database, events.note) as study:
        if study.records:
            events.note(f"Resuming: {len(study.records)} trials are already measured.")
        outcome: Race | None = None
        interrupted = False
        try:
            trace = build_trace(request.workload, shape, request.n_ctx, runner)
            cost = cost_model(model, machine, memory, shape, request.hits)
            earlier = earlier_best(request.state_dir, request.database, identity, space, memory)
            if earlier:
                events.note(f"Starting from the best of {len(earlier)} earlier searches of this model here.")
            session = Session(
                request, space, study, runner, trace, events, memory, cost, gate, earlier, conditions, clock, began_s
            )
            _require_quality(session)
            _baselines(session)
            _trials(session)
            # What the others are still at may belong in the race.
            while study.running_elsewhere and session.time_left_s() > 0:
                study.wait_for_others()
            # One worker proves for all; the others find every measurement made.
            with study.turn("race"):
                _noise(session)
                _look_again(session)
                _confirm(session)
                outcome = _finals(session)
        except KeyboardInterrupt:
            interrupted = True
        records = gate.admissible(study.records)
        verdict = judge(space, records, outcome, interrupted=interrupted)
        verdict = replace(verdict, quality=gate.known(verdict.config))
        if not interrupted:
            study.keep_verdict(saved_verdict(verdict))
        return SearchResult(request, space, tuple(records), outcome, verdict, interrupted)


def _sampler(request: SearchRequest, done: int) -> BaseSampler:
    return sampler_of(request.sampler, request.seed + done)


def _check_context(request: SearchRequest, model: Model) -> None:
    if request.n_ctx < 1:
        raise MoetuneError(f"A context of {request.n_ctx} tokens is none.", "Use a larger --ctx.", ExitCode.USAGE)
    if model.context_length and request.n_ctx > model.context_length:
        raise MoetuneError(
            f"The model was trained for {model.context_length:,} tokens of context, not {request.n_ctx:,}.",
            f"Use --ctx {model.context_length} or less.",
            ExitCode.USAGE,
        )


def _explain(space: Space, shape: RequestShape, request: SearchRequest, events: SearchEvents) -> None:
    if space.cache_idle is not None:
        events.note(f"The expert cache takes no part: {space.cache_idle}.")
    if shape.scaled:
        events.note(
            f"The workload {request.workload.name!r} takes {request.workload.n_ctx_needed:,} tokens; it is scaled to "
            f"{shape.depth_tokens:,} of history, {shape.prompt_tokens:,} in and {shape.reply_tokens:,} out."
        )


def _require_quality(session: Session) -> None:
    """What must pass before anything is measured: the default's types, where f16 is not among those that may compete.

    Baselines of an earlier run of this study, at another level, are asked for too: they must not be the ones to beat.
    """
    report = session.gate.admits(session.space.default)
    if not report.passed:
        raise MoetuneError(
            f"{report.sentence}.",
            "Let f16 compete (--kv f16,...), or accept another quality (--quality).",
            ExitCode.USAGE if report.figures else ExitCode.ENGINE,
        )
    for record in session.study.records:
        if record.origin is Origin.BASELINE:
            session.gate.admits(record.config)


def _baselines(session: Session) -> None:
    session.events.phase(Phase.BASELINES, 0)
    measure_baselines(session)
    _check_budget(session)


def _check_budget(session: Session) -> None:
    """What was measured is kept, so that the same command with more time goes on from there."""
    if any(record.origin is not Origin.BASELINE for record in session.study.records):
        return
    trial_s = session.usual_trial_s()
    if session.time_left_s() < trial_s:
        took = f"one takes about {trial_s:,.1f} s here" if trial_s else "not even a baseline was measured"
        raise MoetuneError(
            f"The budget ends before the first trial: {took}.",
            "Run the same command with a longer --budget: what is measured is kept.",
            ExitCode.USAGE,
        )


def _trials(session: Session) -> None:
    session.events.phase(Phase.TRIALS, trials_left(session))
    measure_trials(session)


def _noise(session: Session) -> None:
    session.events.phase(Phase.NOISE, 0)
    session.noise = calibrate(session)


def _look_again(session: Session) -> None:
    session.events.phase(Phase.LOOKS, 0)
    look_again(session)


def _confirm(session: Session) -> None:
    session.events.phase(Phase.CONFIRM, 0)
    for rival in finalists(session):
        if session.time_left_s() <= 0:
            # The race will not begin either, so nothing is claimed that this would have to hold up.
            return
        measure_twin(session, rival)
        promote_best_stock(session, rival)
    confirm_best_baseline(session)


def _finals(session: Session) -> Race | None:
    session.events.phase(Phase.RACE, 0)
    return run_finals(session)
