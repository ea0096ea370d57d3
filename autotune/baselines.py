"""The configurations to beat: stock llama.cpp as its users run it, always measured first."""

import math
from dataclasses import dataclass, replace

from moetune.autotune.evaluate import Session, fastest
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.space import Space, cache_off
from moetune.autotune.split import with_layers
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, FailureReason

STOCK_CPU = "stock, all on the CPU"
ALL_IN_RAM = "stock, weights in RAM"
EXPERTS_IN_RAM = "stock, experts in RAM"
BEST_OFFLOAD = "stock, best layer offload"
ALL_ON_DEVICE = "stock, all on the device"
CACHE_OFF = "cache off"
TUNED_ALIKE = "stock, tuned alike"
BEST_STOCK = "stock, best found"
# So many placements are tried, each with what the one before taught of memory; each costs a reload.
_MOST_LESSONS = 4
# One disturbed measurement must not choose the baseline of the side-by-side: contenders get so many looks each.
LOOKS = 3
# How many may have their second and their third look, and within how many times the fastest's turn.
_LOOK_AGAIN = ((2, 4, 1.5), (LOOKS, 3, 1.15))
_CPU_NEAR = 1.5


@dataclass(frozen=True)
class Baseline:
    """A named configuration to beat."""

    name: str
    config: EngineConfig


def fixed_baselines(space: Space) -> tuple[Baseline, ...]:
    """The baselines whose configuration is known beforehand."""
    on_cpu = space.default.on_cpu
    if not space.choices("ram_expert_layers") and not space.choices("gpu_layers"):
        baselines = [Baseline(STOCK_CPU, on_cpu)]
    elif space.model.is_moe:
        baselines = [Baseline(EXPERTS_IN_RAM, replace(space.default, ram_expert_layers=space.model.n_layers))]
    else:
        baselines = [Baseline(ALL_IN_RAM, with_layers(space.default, 0, space.tiers, space.model.n_layers))]
    if space.has_cache:
        baselines.append(Baseline(CACHE_OFF, cache_off(space.default, space.tier)))
    if baselines[0].name != STOCK_CPU:
        # Also what is left to run when the fast tier is too small even for buffers.
        baselines.append(Baseline(STOCK_CPU, on_cpu))
    return tuple(baselines)


def offloads(space: Space) -> tuple[EngineConfig, ...]:
    """Every layer placement of stock llama.cpp in this space, from most to least on the device."""
    by_experts = space.choices("ram_expert_layers")
    if by_experts:
        return tuple(replace(space.default, ram_expert_layers=int(value)) for value in by_experts)
    layers = [int(v) for v in reversed(space.choices("gpu_layers")) if int(v)]
    return tuple(with_layers(space.default, g, space.tiers, space.model.n_layers) for g in layers)


def measure_baselines(session: Session) -> None:
    """Measure what is not measured yet, while the budget lasts; the order keeps the engine from reloading more than it
    must.
    """
    left = list(fixed_baselines(session.space))
    while left and session.time_left_s() > 0:
        # Another worker's are waited for last.
        free = next((b for b in left if not session.study.runs_elsewhere(b.config)), left[0])
        left.remove(free)
        _once(session, free.name, free.config)
    _measure_best_offload(session)


def measure_twin(session: Session, rival: TrialRecord) -> None:
    """The best layer offload of stock llama.cpp with the rival's threads, micro-batch, KV types and the like; where the
    CPU alone comes near it, that too.

    Without it a gain that any of these would give stock llama.cpp too would be credited to the cache. As many layers as
    fit are placed anew: smaller buffers or KV types make room for more of them.
    """
    like, best = rival.config, session.best_baseline
    if not like.has_slots:
        return
    on_cpu = fastest([r for r in _measured_baselines(session) if r.config.device is None])
    if best and best.turn_s and on_cpu and on_cpu.turn_s and on_cpu.turn_s <= _CPU_NEAR * best.turn_s:
        _once(session, TUNED_ALIKE, session.space.default.on_cpu.tuned_like(like))
    placements = tuple(config.tuned_like(like) for config in offloads(session.space))
    if _most_layers(session, placements, len(placements), TUNED_ALIKE) < len(placements):
        return
    _once(session, TUNED_ALIKE, fixed_baselines(session.space)[0].config.tuned_like(like))


def promote_best_stock(session: Session, rival: TrialRecord) -> None:
    """Where a cache is about to claim the win, the fastest stock trial is what it has to beat, whoever proposed it."""
    baseline = session.best_baseline
    if not rival.config.has_slots:
        return
    # A lucky trial must not take a baseline's place.
    bar = baseline.turn_s / (1 + session.screening_noise) if baseline and baseline.turn_s is not None else math.inf
    stock = [r for r in session.study.records if r.origin is not Origin.BASELINE and not r.config.has_slots]
    faster = [r for r in stock if r.turn_s is not None and r.turn_s < bar]
    best = next(session.admitted(sorted(faster, key=lambda r: (r.turn_s, r.number))), None)
    if best is not None:
        _once(session, BEST_STOCK, best.config)


def confirm_best_baseline(session: Session) -> None:
    """Measure the fastest baselines again, taking turns; each is judged by its middle look.

    The second look goes far, since the first may have been the disturbed one; the third only to real contenders.
    """
    for look, most, within in _LOOK_AGAIN:
        for name, config in _contenders(session, most, within):
            if session.time_left_s() <= 0:
                return
            if sum(r.config == config for r in _measured_baselines(session)) < look:
                session.evaluate(config, Origin.BASELINE, name)


def further_looks(session: Session) -> int:
    """How many measurements `confirm_best_baseline` would take now."""
    return sum(len(_contenders(session, most, within)) for _, most, within in _LOOK_AGAIN)


def _contenders(session: Session, most: int, within: float) -> list[tuple[str, EngineConfig]]:
    """The fastest baselines, by what each one's best look promises."""
    best = session.best_baseline
    bar_s = within * best.turn_s if best is not None and best.turn_s is not None else 0.0
    fastest_first = sorted(_measured_baselines(session), key=lambda record: (record.turn_s, record.number))
    near = {r.config: r.name for r in fastest_first if r.turn_s is not None and r.turn_s <= bar_s}
    return [(name, config) for config, name in near.items()][:most]


def _measured_baselines(session: Session) -> list[TrialRecord]:
    return [r for r in session.study.records if r.origin is Origin.BASELINE and r.turn_s is not None]


def _once(session: Session, name: str, config: EngineConfig) -> TrialRecord:
    session.catch_up()
    known = (r for r in session.study.records if r.origin is Origin.BASELINE and r.config == config)
    return next(known, None) or session.evaluate(config, Origin.BASELINE, name)


def _measure_best_offload(session: Session) -> None:
    """The most layers that run, with the default micro-batch and with every smaller one that makes room for more."""
    placements = offloads(session.space)
    reached = _most_layers(session, placements, len(placements))
    smaller = [int(n) for n in session.space.choices("n_ubatch") if int(n) < session.space.default.n_ubatch]
    for n_ubatch in reversed(smaller):
        reached = _most_layers(session, tuple(replace(c, n_ubatch=n_ubatch) for c in placements), reached)


def _most_layers(
    session: Session, placements: tuple[EngineConfig, ...], reached: int, family: str = BEST_OFFLOAD
) -> int:
    """The most that the prediction says fit, fewer while out of memory; again with what that taught of memory.

    placements: from most to least on the device. Returns the index of the best that ran, `reached` when none is better.
    """
    for _ in range(_MOST_LESSONS):
        start = next((i for i, config in enumerate(placements) if session.memory.fits_fast(config)), reached)
        if start >= reached or session.time_left_s() <= 0:
            return reached
        ran = next((i for i in range(start, reached) if _runs(_place(session, family, placements[i]))), reached)
        if ran != start:
            return ran
        # Only now is it known what the device really holds: a prediction too careful would make a weak baseline.
        reached = ran
    return reached


def _place(session: Session, family: str, config: EngineConfig) -> TrialRecord:
    whole = config.gpu_layers > session.space.model.n_layers and config.ram_expert_layers == 0
    return _once(session, ALL_ON_DEVICE if whole and family == BEST_OFFLOAD else family, config)


def _runs(record: TrialRecord) -> bool:
    """Whether to stop looking: it ran, or failed for a reason that fewer layers would not change."""
    outcome = record.outcome
    memory_reasons = (FailureReason.OUT_OF_MEMORY, FailureReason.LOAD_FAILED, FailureReason.CONTEXT_FAILED)
    return not (record.measurement is None and (not isinstance(outcome, Failed) or outcome.reason in memory_reasons))
