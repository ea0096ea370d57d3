"""What trials teach of configurations that were not tried, and that the search goes where they point."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fake_runner import FakeRunner, Landscape
from world import WORKLOAD, gpu, machine_with, memory_of, moe_model, request_for, runner_for, still

from moetune.autotune.cost import cost_model
from moetune.autotune.events import Silent
from moetune.autotune.race import Standing
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.request import SearchRequest
from moetune.autotune.search import search
from moetune.autotune.space import Space, build_space
from moetune.autotune.surrogate import Surrogate
from moetune.autotune.trace import shape_for
from moetune.engine.config import CacheKnobs, EngineConfig, Policy
from moetune.engine.measurement import Failed, Measurement, Trace

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
MEMORY = memory_of(MACHINE, MODEL)
COST = cost_model(MODEL, MACHINE, MEMORY, shape_for(WORKLOAD, 2048))


@pytest.fixture
def space(request_: SearchRequest) -> Space:
    return build_space(MODEL, MACHINE.cpu, MEMORY, request_)


def cached(space: Space, source: np.random.Generator, policy: Policy) -> EngineConfig:
    """With slots, and any size, interval, promotions and hysteresis."""
    point = space.params_of(replace(space.default, cache=CacheKnobs(slots=1, policy=policy)), MEMORY)
    for knob in space.knobs:
        if knob.name in ("n_ubatch", "interval_tokens", "promotions", "hysteresis"):
            point[knob.name] = knob.encode(knob.choices[int(source.integers(len(knob.choices)))])
        if knob.name == "slots_percent":
            point[knob.name] = knob.encode(knob.choices[-1 - int(source.integers(8))])
    return space.config_of(point, MEMORY)


def record(number: int, config: EngineConfig, factor: float, slowest: float = 1.0) -> TrialRecord:
    """As predicted but for a factor; of ten tokens two take so many times as long."""
    turn_s, token_s = (factor * seconds for seconds in COST.times_s(config))
    measured = Measurement(8, (1.0,), (token_s,) * 8 + (slowest * token_s,) * 2, 0, 0, None, 0.0)
    return TrialRecord(number, Origin.SEED, "", config, measured, turn_s, 1.0, 0, 0)


def gains(space: Space, slow: Callable[[EngineConfig], tuple[float, float]]) -> dict[Policy, float]:
    """Mean expected gain of configurations that were not tried, by their policy, after 24 trials."""
    source = np.random.default_rng(1)
    policies = (Policy.HEAT, Policy.LRU)
    tried = [cached(space, source, policies[i % 2]) for i in range(24)]
    surrogate = Surrogate.of(space, COST, [record(i, c, *slow(c)) for i, c in enumerate(tried)], 0.02)
    bar_s = 1.5 * max(COST.times_s(config)[1] for config in tried)
    fresh = {policy: [cached(space, source, policy) for _ in range(40)] for policy in policies}
    return {p: float(np.mean(surrogate.expected_gains(of, tried, bar_s))) for p, of in fresh.items()}


def is_lru(config: EngineConfig) -> bool:
    return config.cache is not None and config.cache.policy is Policy.LRU


def test_what_was_slower_than_predicted_is_expected_to_be_so_elsewhere(space: Space) -> None:
    """One policy lost 40 % wherever it was tried, of which the cost model knows nothing."""
    alike = gains(space, lambda _: (1.0, 1.0))
    learnt = gains(space, lambda config: (1.4, 1.0) if is_lru(config) else (1.0, 1.0))
    assert alike[Policy.LRU] == pytest.approx(alike[Policy.HEAT], rel=0.5)
    assert learnt[Policy.LRU] < 0.5 * learnt[Policy.HEAT]


def test_what_makes_tokens_stall_is_expected_to_be_refused_elsewhere(space: Space) -> None:
    """As fast in the mean, but two tokens in ten take five times as long."""
    learnt = gains(space, lambda config: (1.0, 5.0) if is_lru(config) else (1.0, 1.0))
    assert learnt[Policy.LRU] < 0.5 * learnt[Policy.HEAT]


def is_restless(config: EngineConfig) -> bool:
    return config.cache is not None and config.has_slots and config.cache.interval_tokens <= 2


class Stalling(FakeRunner):
    """Where experts are promoted every token or two: a fifth faster, but one token in five takes five times as long."""

    def measure(self, config: EngineConfig, trace: Trace, *, passes: int, time_limit_s: float) -> Measurement | Failed:
        outcome = super().measure(config, trace, passes=passes, time_limit_s=time_limit_s)
        if isinstance(outcome, Failed) or not is_restless(config):
            return outcome
        samples = outcome.tg_samples_s
        usual_s = 0.8 * samples[0] / 1.8
        return replace(outcome, tg_samples_s=tuple(usual_s * (5 if i % 5 == 0 else 1) for i in range(len(samples))))


def test_a_search_finds_what_does_not_stall(request_: SearchRequest) -> None:
    """Promotions after every token or two are the fastest in the mean and would be refused: others must race."""
    usual = runner_for(MACHINE, MODEL, Landscape(noise=0.005))
    result = search(
        request_for(request_.state_dir, n_trials=30),
        Stalling(usual.landscape, usual.memory),
        MACHINE,
        MODEL,
        Silent(),
        still,
    )
    assert any(is_restless(record.config) for record in result.records)
    late = [record.config for record in result.records if record.origin is Origin.SAMPLER][-10:]
    assert sum(map(is_restless, late)) <= len(late) / 3
    assert result.race is not None
    assert result.verdict.config is not None
    assert result.verdict.config.has_slots
    assert not is_restless(result.verdict.config)
    assert all(arm.rounds < 12 for arm in result.race.arms if arm.standing is Standing.STALLS)


def test_the_same_search_again_tries_the_same(request_: SearchRequest) -> None:
    """Trials are reproducible, seed by seed."""
    tried = []
    for name in ("one", "other"):
        runner = runner_for(MACHINE, MODEL, Landscape())
        search(request_for(request_.state_dir / name, n_trials=20), runner, MACHINE, MODEL, Silent(), still)
        tried.append(runner.launched)
    assert tried[0] == tried[1]
