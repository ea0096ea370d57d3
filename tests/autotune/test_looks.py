"""Further looks: among trials that noise cannot tell apart, the truly faster ones become finalists."""

from collections import Counter
from dataclasses import replace

from fake_runner import FakeRunner, Landscape
from world import gpu, machine_with, moe_model, request_for, runner_for, still

from moetune.autotune.events import Silent
from moetune.autotune.looks import LOOKS, MOST_CLOSE
from moetune.autotune.record import Origin
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search

MACHINE, MODEL = machine_with(gpu(900)), moe_model()


def run(request: SearchRequest, noise: float) -> tuple[SearchResult, FakeRunner]:
    runner = runner_for(MACHINE, MODEL, Landscape(noise=noise))
    return search(request, runner, MACHINE, MODEL, Silent(), still), runner


def test_close_trials_are_looked_at_again(request_: SearchRequest) -> None:
    """Never more often than said, never a baseline, and they use up no trials."""
    request = replace(request_, n_trials=30, patience=30, finalists=2)
    result, _ = run(request, noise=0.02)
    looks = Counter(record.config for record in result.records if record.origin is Origin.LOOK)
    assert 0 < len(looks) <= MOST_CLOSE
    assert max(looks.values()) < LOOKS
    assert not looks.keys() & {r.config for r in result.records if r.origin is Origin.BASELINE}
    assert sum(r.origin in (Origin.SEED, Origin.SAMPLER) and r.launched for r in result.records) == request.n_trials


def test_where_all_may_race_nobody_is_looked_at_twice_again(request_: SearchRequest) -> None:
    """The race tells them apart."""
    result, _ = run(replace(request_, finalists=30), noise=0.001)
    looks = Counter(record.config for record in result.records if record.origin is Origin.LOOK)
    assert set(looks.values()) == {1}


def test_looks_of_an_earlier_run_count(request_: SearchRequest) -> None:
    """The same command again measures nothing twice too often."""
    request = replace(request_for(request_.state_dir), n_trials=30, patience=30, finalists=2)
    first, _ = run(request, noise=0.02)
    again, runner = run(request, noise=0.02)
    assert [record.config for record in first.records] == [record.config for record in again.records]
    assert runner.launched == []
