"""One search, from a model and a machine to a verdict."""

from moetune.autotune.baselines import confirm_best_baseline, measure_baselines, measure_twin, promote_best_stock
from moetune.autotune.duel import Duel
from moetune.autotune.earlier import earlier_best
from moetune.autotune.evaluate import Session
from moetune.autotune.events import Phase, SearchEvents
from moetune.autotune.finals import finalists, run_finals
from moetune.autotune.identity import identity_of
from moetune.autotune.memory import MemoryModel, require_memory
from moetune.autotune.open_study import open_study
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.space import Space, build_space
from moetune.autotune.tier import choose_tier
from moetune.autotune.trace import RequestShape, build_trace, shape_for
from moetune.autotune.trials import measure_trials, trials_left
from moetune.autotune.verdict import judge
from moetune.engine.measurement import Runner
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine


def search(
    request: SearchRequest, runner: Runner, machine: Machine, model: Model, events: SearchEvents
) -> SearchResult:
    """Find the fastest configuration and prove it; Ctrl-C keeps what is measured and returns what is known.

    Raises MoetuneError (DEVICE, MEMORY, STORAGE, BUSY, MODEL, USAGE) before the first launch where the search cannot
    be done at all. The caller closes the runner.
    """
    events.phase(Phase.PREPARE, 0)
    _check_context(request, model)
    tier = choose_tier(machine, request.device)
    memory = MemoryModel(model, tier, machine.memory.available_bytes)
    space = build_space(model, machine.cpu, memory, request)
    require_memory(memory, space.default, request.allow_overcommit)
    shape = shape_for(request.workload, request.n_ctx)
    _explain(space, shape, request, events)
    identity = identity_of(request, machine, model, space)
    with open_study(request.state_dir, identity, space, request.seed, request.database, events.note) as study:
        if study.records:
            events.note(f"Resuming: {len(study.records)} trials are already measured.")
        duels: tuple[Duel, ...] = ()
        interrupted = False
        try:
            trace = build_trace(request.workload, shape, runner)
            earlier = earlier_best(request.state_dir, request.database, identity, space, memory)
            if earlier:
                events.note(f"Starting from the best of {len(earlier)} earlier searches of this model here.")
            session = Session(request, space, study, runner, trace, events, memory, earlier)
            _baselines(session)
            _trials(session)
            # One worker proves for all; the others find every measurement made.
            with study.turn("side-by-side"):
                _confirm(session)
                duels = _finals(session)
        except KeyboardInterrupt:
            interrupted = True
        verdict = judge(space, study.records, duels, interrupted=interrupted)
        return SearchResult(request, space, tuple(study.records), duels, verdict, interrupted)


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


def _baselines(session: Session) -> None:
    session.events.phase(Phase.BASELINES, 0)
    measure_baselines(session)


def _trials(session: Session) -> None:
    session.events.phase(Phase.TRIALS, trials_left(session))
    measure_trials(session)


def _confirm(session: Session) -> None:
    session.events.phase(Phase.CONFIRM, 0)
    for rival in finalists(session):
        measure_twin(session, rival)
        promote_best_stock(session, rival)
    confirm_best_baseline(session)


def _finals(session: Session) -> tuple[Duel, ...]:
    session.events.phase(Phase.DUEL, 2 * session.request.duel_blocks * len(finalists(session)))
    return run_finals(session)
