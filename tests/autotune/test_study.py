"""The study on disk: what a killed, interrupted, doubled or damaged search leaves."""

import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner, Landscape
from optuna.trial import TrialState
from world import gpu, machine_with, memory_of, moe_model, request_for, runner_for, still

from moetune.autotune.baselines import LOOKS
from moetune.autotune.events import Silent
from moetune.autotune.journal import exclusive
from moetune.autotune.record import NotLaunched, Origin, TrialRecord, to_optuna
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult, profile_of
from moetune.autotune.search import search
from moetune.autotune.verdict import VerdictKind
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed, FailureReason, Measurement
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import read_profile, to_yaml

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
LANDSCAPE = Landscape(noise=0.02)
BASELINES = 4


def run(request: SearchRequest, runner: FakeRunner | None = None) -> SearchResult:
    return search(request, runner or runner_for(MACHINE, MODEL, LANDSCAPE), MACHINE, MODEL, Silent(), still)


def interrupted_after(calls: int) -> FakeRunner:
    def before(done: int) -> None:
        if done == calls:
            raise KeyboardInterrupt

    return FakeRunner(LANDSCAPE, memory_of(MACHINE, MODEL), before=before)


def tried(result: SearchResult) -> int:
    """Configurations that count against --trials."""
    return sum(record.origin in (Origin.SEED, Origin.SAMPLER) and record.launched for record in result.records)


def journal_of(request: SearchRequest) -> Path:
    (journal,) = request.state_dir.glob("*.journal")
    return journal


def test_ctrl_c_keeps_what_was_measured(request_: SearchRequest) -> None:
    """The result has the finished trials, says interrupted, claims nothing and leaves no profile."""
    result = run(request_, interrupted_after(BASELINES + 3))
    assert result.interrupted
    assert len(result.records) == BASELINES + 3
    assert result.verdict.kind is VerdictKind.INTERRUPTED
    assert "nothing is proven" in result.verdict.sentence
    assert profile_of(result, machine_fingerprint="m", machine_label="m", moetune_version="1") is None


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 19, 35])
def test_the_same_command_goes_on(request_: SearchRequest, calls: int) -> None:
    """After an interruption anywhere, only what is missing is measured; the total is that of one search."""
    request_ = replace(request_, patience=request_.n_trials)
    first = run(request_, interrupted_after(calls))
    runner = runner_for(MACHINE, MODEL, LANDSCAPE)
    second = run(request_, runner)
    assert second.records[: len(first.records)] == first.records
    # Baselines are looked at more than once on purpose, and so is whatever takes part in the race.
    again = [r.config for r in second.records[len(first.records) :] if r.origin in (Origin.SEED, Origin.SAMPLER)]
    assert not {r.config for r in first.records} & set(again)
    # One look more where a trial was promoted to a baseline.
    assert max(Counter(r.config for r in second.records).values()) <= LOOKS + LOOKS
    assert len(runner.launched) > len(again)
    assert tried(second) == request_.n_trials
    assert not second.interrupted


def test_a_finished_search_says_the_same_again_without_measuring(request_: SearchRequest) -> None:
    """A race that was run stands: racing until the outcome pleases would name false winners."""
    first = run(request_)
    runner = runner_for(MACHINE, MODEL, LANDSCAPE)
    result = run(request_, runner)
    assert runner.launched == []
    assert result.verdict == first.verdict
    assert result.verdict.kind is VerdictKind.CACHE_WINS


def test_more_trials_extend_a_finished_search(request_: SearchRequest) -> None:
    """--trials is a total."""
    run(request_)
    result = run(replace(request_, n_trials=20, patience=20))
    assert tried(result) == 20


def killed_search(request: SearchRequest, calls: int) -> None:
    def before(done: int) -> None:
        if done == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    run(request, FakeRunner(LANDSCAPE, memory_of(MACHINE, MODEL), before=before))


def test_a_killed_search_resumes_with_every_finished_trial(request_: SearchRequest) -> None:
    """kill -9 in the sixth trial: five are kept, the sixth is marked dead, the lock is free."""
    process = multiprocessing.get_context("fork").Process(target=killed_search, args=(request_, BASELINES + 1))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    runner = runner_for(MACHINE, MODEL, LANDSCAPE)
    result = run(request_, runner)
    # The A/A rounds have numbers too, and the one between the last two is the one that was killed.
    assert [record.number for record in result.records[:6]] == [0, 1, 2, 3, 4, 6]
    assert result.verdict.kind is VerdictKind.CACHE_WINS
    assert result.records[4].config not in runner.launched[:1]


def test_half_a_written_line_loses_nothing_that_was_finished(request_: SearchRequest) -> None:
    """A journal cut in the middle of its last line is repaired, and the torn piece set aside."""
    first = run(request_, interrupted_after(BASELINES + 2))
    journal = journal_of(request_)
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x","tri')
    second = run(request_)
    assert second.records[:6] == first.records
    assert list(request_.state_dir.glob("*.torn-*"))


@pytest.mark.parametrize("damage", [b"\x00\xff\xfe garbage\n", b'{"op_code": 4, "no": "such"}\n', b"[1, 2]\n", b"7\n"])
def test_a_corrupt_journal_is_moved_aside_not_deleted(request_: SearchRequest, damage: bytes) -> None:
    """One message with the file and the remedy; the content is kept; the next search starts afresh."""
    run(request_, interrupted_after(6))
    journal = journal_of(request_)
    lines = journal.read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:4], damage, *lines[4:]])
    journal.write_bytes(content)
    with pytest.raises(MoetuneError, match=journal.name) as caught:
        run(request_)
    assert caught.value.code is ExitCode.STORAGE
    (aside,) = request_.state_dir.glob("*.corrupt-*")
    assert aside.read_bytes() == content
    assert str(aside) in caught.value.remedy
    assert len(run(request_, interrupted_after(3)).records) == 3


def test_a_second_search_on_the_same_study_is_refused(request_: SearchRequest) -> None:
    """While one holds the study another gets one message; afterwards it is free again."""
    run(request_, interrupted_after(2))
    (lock,) = request_.state_dir.glob("*.busy")
    with exclusive(lock):
        with pytest.raises(MoetuneError) as caught:
            run(request_)
        assert caught.value.code is ExitCode.BUSY
    assert len(run(request_, interrupted_after(3)).records) > 2


def test_a_search_of_another_context_is_another_study(request_: SearchRequest) -> None:
    """Measurements of different contexts or workloads are never mixed, and may run at the same time."""
    run(request_, interrupted_after(2))
    run(replace(request_, n_ctx=1024), interrupted_after(2))
    run(replace(request_, engine_version="engine 2"), interrupted_after(2))
    assert len(list(request_.state_dir.glob("*.journal"))) == 3


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    """A file lies where the folder should be."""
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    with pytest.raises(MoetuneError, match="blocked") as caught:
        run(request_for(blocked / "searches"))
    assert caught.value.code is ExitCode.STORAGE


def test_samples_of_the_race_are_kept(request_: SearchRequest) -> None:
    """Every round's raw samples lie in the journal."""
    result = run(request_)
    text = journal_of(request_).read_text()
    assert result.race is not None
    assert text.count("contenders") >= len(result.race.rounds) > 0
    assert "tg_samples_s" in text


def test_the_profile_survives_its_file(request_: SearchRequest, tmp_path: Path) -> None:
    """What a search returns can be saved and read back unchanged."""
    result = run(request_)
    profile = profile_of(result, machine_fingerprint="m", machine_label="A CPU", moetune_version="1")
    assert profile is not None
    path = tmp_path / "profile.yaml"
    path.write_text(to_yaml(profile))
    assert read_profile(path) == profile
    assert profile.config == result.verdict.config
    assert profile.gain_low > 1


CONFIG = EngineConfig(n_ctx=512, n_threads=2)
MEASURED = Measurement(8, (0.1,), (0.1,), 1, 0, None, 0.0)


def record(outcome: Measurement | Failed | NotLaunched, fast_excess: int = -5 << 20) -> TrialRecord:
    turn_s = 1.5 if isinstance(outcome, Measurement) else None
    return TrialRecord(0, Origin.SAMPLER, "", CONFIG, outcome, turn_s, 1.0, fast_excess, -1 << 20)


@pytest.mark.parametrize(
    ("kept", "state", "broken"),
    [
        (record(MEASURED), TrialState.COMPLETE, set()),
        (record(Failed(FailureReason.OUT_OF_MEMORY, "")), TrialState.PRUNED, {"fast_memory_mib"}),
        (record(Failed(FailureReason.CRASHED, "")), TrialState.PRUNED, {"runs"}),
        (record(Failed(FailureReason.HUNG, "")), TrialState.PRUNED, {"runs"}),
        (record(NotLaunched(3 << 20, -1), 3 << 20), TrialState.PRUNED, {"fast_memory_mib"}),
        (record(MEASURED, 3 << 20), TrialState.COMPLETE, set()),
    ],
)
def test_outcomes_reach_the_sampler_as_constraints(kept: TrialRecord, state: TrialState, broken: set[str]) -> None:
    """No trial fails in Optuna's sense, every one sets every constraint, and the broken one is positive."""
    outcome = to_optuna(kept)
    assert outcome.state is state
    assert set(outcome.constraints) == {"fast_memory_mib", "host_memory_mib", "quality", "runs"}
    assert {key for key, value in outcome.constraints.items() if value > 0} == broken
