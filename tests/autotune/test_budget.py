"""--budget: a search ends in time, and leaves enough of it to prove what it found."""

from dataclasses import replace
from statistics import median

import pytest
from fake_runner import FakeRunner, Landscape
from world import gpu, machine_with, moe_model, request_for, runner_for, still

from moetune.autotune.events import Silent
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.errors import ExitCode, MoetuneError

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
LANDSCAPE = Landscape(noise=0.002)


def run(request: SearchRequest, runner: FakeRunner | None = None) -> tuple[SearchResult, FakeRunner]:
    runner = runner or runner_for(MACHINE, MODEL, LANDSCAPE)
    return search(request, runner, MACHINE, MODEL, Silent(), still, lambda: runner.spent_s), runner


@pytest.fixture
def unlimited_s(request_: SearchRequest) -> float:
    """What the whole search takes when nobody limits it."""
    return run(replace(request_, n_trials=40))[1].spent_s


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_a_budget_holds_and_what_is_found_in_it_is_proven(
    request_: SearchRequest, unlimited_s: float, share: float
) -> None:
    """Fewer trials, not a race that cannot name anybody; what is under way, at most a round, may run over."""
    request = request_for(request_.state_dir / "limited", n_trials=40, budget_s=share * unlimited_s)
    result, runner = run(request)
    assert request.budget_s is not None
    assert result.race is not None
    usual_s = median(record.wall_s for record in result.records if record.measurement)
    assert runner.spent_s <= request.budget_s + 2 * (1 + len(result.race.arms)) * usual_s
    assert result.verdict.proven


def test_a_budget_that_ends_with_the_baselines_is_an_error_and_nothing_is_lost(
    request_: SearchRequest, unlimited_s: float
) -> None:
    """It says what a trial takes; the same command with more time goes on from there."""
    request = request_for(request_.state_dir / "limited", n_trials=40, budget_s=0.02 * unlimited_s)
    runner = runner_for(MACHINE, MODEL, LANDSCAPE)
    with pytest.raises(MoetuneError, match="The budget ends before the first trial: one takes about") as refused:
        run(request, runner)
    assert refused.value.code is ExitCode.USAGE
    measured = [*runner.launched]
    result, _ = run(replace(request, budget_s=None))
    assert measured
    assert [record.config for record in result.records[: len(measured)]] == measured
    assert result.verdict.proven
