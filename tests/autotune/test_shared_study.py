"""Several identical machines on one study in a real PostgreSQL: they join, leave and die."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import optuna
import pytest
from fake_runner import FakeRunner
from postgres_server import Server, programs, running
from shared_worker import LANDSCAPE, MACHINE, MODEL, quick
from world import gpu, machine_with, memory_of, request_for, runner_for, still

from moetune.autotune.baselines import LOOKS
from moetune.autotune.events import Silent
from moetune.autotune.identity import identity_of
from moetune.autotune.open_study import open_study
from moetune.autotune.race import Rules
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.sampler import Sampler, sampler_of
from moetune.autotune.search import search
from moetune.autotune.shelf import StoredStudy, StoredTrial, Tables
from moetune.autotune.space import build_space
from moetune.autotune.study import Study
from moetune.autotune.verdict import VerdictKind
from moetune.demo import demo_model_path
from moetune.engine.measurement import Failed, FailureReason
from moetune.errors import ExitCode, MoetuneError

# Calls of the engine until the first trial: four baselines, then the best twice in each A/A round.
BASELINES = 4
HERE = Path(__file__).parent
LIMIT_S = 240.0
_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed and `make postgres` could not get it")
    with running(found) as started:
        yield started


@pytest.fixture
def url(server: Server) -> str:
    """An empty database."""
    return server.new(f"studies_{next(_numbers)}")


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def request_on(url: str, folder: Path, **changes: object) -> SearchRequest:
    return request_for(folder, **{"database": quick(url), "n_trials": 6, "rules": Rules(most_rounds=8), **changes})


def run(request: SearchRequest, runner: FakeRunner | None = None, notes: Notes | None = None) -> SearchResult:
    return search(request, runner or runner_for(MACHINE, MODEL, LANDSCAPE), MACHINE, MODEL, notes or Silent(), still)


def runner_that(before: Callable[[int], None]) -> FakeRunner:
    return FakeRunner(LANDSCAPE, memory_of(MACHINE, MODEL), before=before)


def stored(url: str) -> StoredStudy | None:
    """The only study there is; None before it is begun."""
    studies = Tables(quick(url)).read().studies
    assert len(studies) <= 1
    return studies[0] if studies else None


def study_at(url: str) -> StoredStudy:
    study = stored(url)
    assert study is not None
    return study


def trials_of(url: str) -> list[optuna.trial.FrozenTrial]:
    """As optuna has them."""
    return optuna.load_study(study_name=study_at(url).key, storage=quick(url).url).trials


def running_trial(url: str, pid: int) -> StoredTrial | None:
    """What the worker with this process id is measuring now."""
    study = stored(url)
    trials = study.trials if study else ()
    return next((t for t in trials if t.state == "running" and f":{pid}-" in t.worker), None)


def stopped_in(url: str, process: "subprocess.Popen[str]", fits: Callable[[StoredTrial], bool]) -> StoredTrial:
    """Stop the worker while it measures a trial that fits: the trial it is in, its record not yet written."""

    def in_one() -> StoredTrial | None:
        trial = running_trial(url, process.pid)
        return trial if trial is not None and fits(trial) else None

    give_up_at = time.monotonic() + LIMIT_S
    while time.monotonic() < give_up_at:
        if in_one():
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            trial = in_one()
            if trial is not None and "record" not in trials_of(url)[trial.number].user_attrs:
                return trial
            process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    raise AssertionError("the worker never got there")


def worker(url: str, folder: Path, what: str) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True)
    with (folder / "log").open("w") as log, (folder / "errors").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, str(HERE / "shared_worker.py"), url, str(folder), what],
            stdout=log,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        )


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


def measured(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"^measured (\d+)$", log_of(folder), re.MULTILINE)]


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.05)


def finished(process: "subprocess.Popen[str]", folder: Path) -> None:
    assert process.wait(LIMIT_S) == 0, (folder / "errors").read_text()


def nothing_is_doubled(study: StoredStudy) -> None:
    """No configuration is a trial twice, and baselines are looked at no more often than one machine would look."""
    tried = [record for record in study.records if record.origin in (Origin.SEED, Origin.SAMPLER)]
    assert max(Counter(record.config for record in tried).values()) == 1
    looks = Counter(record.config for record in study.records if record.origin is Origin.BASELINE)
    assert max(looks.values()) <= LOOKS + 1


def killed_half_way(url: str, folder: Path, what: str) -> tuple[StoredStudy, StoredTrial]:
    """Two workers, one killed with -9 while it measures: what the other leaves, and the trial it happened in."""
    doomed, survivor = worker(url, folder / "a", what), worker(url, folder / "b", what)
    try:
        wait_until(lambda: bool(measured(folder / "a")) and bool(measured(folder / "b")))
        died_in = stopped_in(url, doomed, lambda trial: trial.origin is not Origin.BASELINE)
        doomed.kill()
        assert doomed.wait() == -signal.SIGKILL
        finished(survivor, folder / "b")
    finally:
        doomed.kill()
        survivor.kill()
    study = study_at(url)
    states = {trial.number: trial.state for trial in study.trials}
    assert states[died_in.number] == "fail"
    # What the dead one had finished is there under its name, and so is what the other did.
    kept = {trial.number: trial.worker for trial in study.trials if trial.record is not None}
    assert all(f":{doomed.pid}-" in kept[number] for number in measured(folder / "a"))
    assert {f":{survivor.pid}-" in kept[number] for number in measured(folder / "b")} == {True}
    assert len(kept) == len(measured(folder / "a")) + len(measured(folder / "b"))
    assert set(states.values()) <= {"complete", "pruned", "fail"}
    # The trial it died in came back with the same point, and was measured.
    trials = trials_of(url)
    again = [trial for trial in trials if trial.system_attrs.get("failed_trial") == died_in.number]
    assert [trial.params for trial in again] == [trials[died_in.number].params]
    assert again[0].state.is_finished()
    return study, died_in


def test_a_dead_workers_trial_is_retried_and_nothing_is_lost_or_doubled(url: str, tmp_path: Path) -> None:
    """kill -9 in the middle of a trial: the other worker takes it over and finishes the search."""
    study, _ = killed_half_way(url, tmp_path, "0.5")
    nothing_is_doubled(study)
    assert sum(r.origin in (Origin.SEED, Origin.SAMPLER) and r.launched for r in study.records) == 10
    assert study.blocks
    assert "cache-wins" in log_of(tmp_path / "b")


def test_a_baseline_whose_worker_died_is_measured_by_another(url: str, tmp_path: Path) -> None:
    """Nothing hands it on: whoever needs it finds it free again once the other is known to be dead."""
    doomed = worker(url, tmp_path / "a", "600")
    try:
        wait_until(lambda: running_trial(url, doomed.pid) is not None)
        doomed.kill()
        doomed.wait()
        notes = Notes()
        result = run(request_on(url, tmp_path / "b"), notes=notes)
    finally:
        doomed.kill()
    assert result.verdict.kind is VerdictKind.CACHE_WINS
    assert any("Joining" in text for text in notes.texts)
    assert [trial.state for trial in study_at(url).trials if f":{doomed.pid}-" in trial.worker] == ["fail"]
    nothing_is_doubled(study_at(url))


def test_a_worker_that_was_only_asleep_loses_nothing(url: str, tmp_path: Path) -> None:
    """Taken for dead in a trial, it wakes, keeps what it measured, and goes on beside the other."""
    sleeper, other = worker(url, tmp_path / "a", "0.5"), worker(url, tmp_path / "b", "0.5")
    try:
        asleep = stopped_in(url, sleeper, lambda trial: trial.origin is not Origin.BASELINE)
        wait_until(lambda: {t.number: t.state for t in study_at(url).trials}[asleep.number] == "fail")
        sleeper.send_signal(signal.SIGCONT)
        finished(sleeper, tmp_path / "a")
        finished(other, tmp_path / "b")
    finally:
        sleeper.kill()
        other.kill()
    study = study_at(url)
    assert len(study.records) == len(measured(tmp_path / "a")) + len(measured(tmp_path / "b"))
    assert study.blocks
    assert re.findall("cache-wins", log_of(tmp_path / "a") + log_of(tmp_path / "b")) == ["cache-wins"] * 2


def test_a_worker_that_joins_a_finished_study_measures_nothing(url: str, tmp_path: Path) -> None:
    """Its verdict is that of the blocks the others fought."""
    first = run(request_on(url, tmp_path / "a"))
    runner = runner_for(MACHINE, MODEL, LANDSCAPE)
    assert run(request_on(url, tmp_path / "b"), runner).verdict == first.verdict
    assert runner.launched == []


def test_two_workers_never_measure_the_same_at_once(url: str, tmp_path: Path) -> None:
    """The second waits, says for whom, and gets the first one's record; a turn is taken one after the other."""
    memory, request = memory_of(MACHINE, MODEL), request_on(url, tmp_path / "a")
    space = build_space(MODEL, MACHINE.cpu, memory, request)
    identity = identity_of(request, MACHINE, MODEL, space)
    config, notes = space.default, Notes()
    params = space.params_of(config, memory)

    def opened(name: str, note: Callable[[str], None]) -> AbstractContextManager[Study]:
        return open_study(tmp_path / name, identity, space, partial(sampler_of, Sampler.TPE), quick(url), note)

    with opened("a", lambda text: None) as one, opened("b", notes.note) as two, ThreadPoolExecutor() as pool:
        number = one.claim(params, config, Origin.SEED)
        assert isinstance(number, int)
        assert two.runs_elsewhere(config)
        assert (one.running_elsewhere, two.running_elsewhere) == (0, 1)
        waiting = pool.submit(two.claim, params, config, Origin.SEED)
        wait_until(lambda: any("Waiting" in text for text in notes.texts))
        outcome = Failed(FailureReason.CRASHED, "on purpose")
        record = TrialRecord(number, Origin.SEED, "", config, outcome, None, 1.0, 0, 0)
        one.tell(record)
        assert waiting.result(LIMIT_S) == record
        assert one.records == two.records == [record]

        order: list[str] = []

        def take_turn() -> None:
            with two.turn("proof"):
                order.append("two")

        with one.turn("proof"):
            taking = pool.submit(take_turn)
            wait_until(lambda: any("proof" in text for text in notes.texts))
            order.append("one")
        taking.result(LIMIT_S)
        assert order == ["one", "two"]
    waited = next(text for text in notes.texts if "Waiting" in text)
    assert f":{os.getpid()}-" in waited
    assert "to measure the same" in waited


def test_ctrl_c_leaves_the_study_to_others(url: str, tmp_path: Path) -> None:
    """A worker leaves in the middle; the next goes on at once, without waiting for it to be dead."""

    def leave(calls: int) -> None:
        if calls == 7:
            raise KeyboardInterrupt

    assert run(request_on(url, tmp_path / "a"), runner_that(leave)).interrupted
    assert run(request_on(url, tmp_path / "b")).verdict.kind is VerdictKind.CACHE_WINS
    nothing_is_doubled(study_at(url))


def test_a_machine_of_another_kind_is_refused(url: str, tmp_path: Path) -> None:
    """Before it measures anything; both machines are named."""
    run(request_on(url, tmp_path / "a", n_trials=1))
    other = machine_with(gpu(900, description="NVIDIA Something Else"))
    runner = runner_for(other, MODEL, LANDSCAPE)
    with pytest.raises(MoetuneError, match=r"(?s)NVIDIA Something\..*NVIDIA Something Else.*study drop") as caught:
        search(request_on(url, tmp_path / "b"), runner, other, MODEL, Silent(), still)
    assert caught.value.code is ExitCode.STORAGE
    assert runner.launched == []


def test_machines_that_differ_in_serial_numbers_share_a_study(tmp_path: Path, url: str) -> None:
    """Two cards of one kind are one kind of machine."""
    from moetune.hardware.machine import NvidiaGpu

    def with_card(uuid: str) -> NvidiaGpu:
        return NvidiaGpu(0, "Card", uuid, None, "600.1", 1 << 30, None, None, None, None, None, None, None, ())

    one, two = (replace(MACHINE, gpus=(with_card(uuid),)) for uuid in ("GPU-1", "GPU-2"))
    assert one.fingerprint != two.fingerprint
    request = request_on(url, tmp_path / "a", n_trials=1)
    search(request, runner_for(one, MODEL, LANDSCAPE), one, MODEL, Silent(), still)
    runner = runner_for(two, MODEL, LANDSCAPE)
    search(replace(request, state_dir=tmp_path / "b"), runner, two, MODEL, Silent(), still)
    assert runner.launched == []


def test_another_engine_begins_anew_and_says_so(url: str, tmp_path: Path) -> None:
    """Measurements of two engines are never mixed."""
    run(request_on(url, tmp_path / "a", n_trials=1))
    notes = Notes()
    run(request_on(url, tmp_path / "b", n_trials=1, engine_version="engine 2"), notes=notes)
    assert any("engine 1" in text for text in notes.texts)
    assert len(Tables(quick(url)).read().studies) == 2


def test_a_database_that_restarts_is_outlasted(server: Server, url: str, tmp_path: Path) -> None:
    """A search under way waits for it and goes on."""

    def restart(calls: int) -> None:
        if calls == 6:
            server.stop()
            server.start()

    request = request_on(url, tmp_path / "a")
    patient = replace(request, database=replace(quick(url), patience_s=30.0))
    result = run(patient, runner_that(restart))
    assert result.verdict.kind is VerdictKind.CACHE_WINS
    assert len(result.records) == len(study_at(url).records)


def test_what_was_measured_while_the_database_was_away_is_sent_later(server: Server, url: str, tmp_path: Path) -> None:
    """The search ends with one message; the last measurement waits in a file, and reaches the study."""

    def pull_the_plug(calls: int) -> None:
        if calls == BASELINES + 2:
            server.stop()

    request = request_on(url, tmp_path / "a")
    runner = runner_that(pull_the_plug)
    try:
        with pytest.raises(MoetuneError) as caught:
            run(request, runner)
    finally:
        server.start()
    assert caught.value.code is ExitCode.STORAGE
    assert server.password not in str(caught.value)
    assert "goes on from there" in caught.value.remedy
    lost = runner.launched[-1]
    assert lost not in [record.config for record in study_at(url).records]
    assert list(request.state_dir.glob("*.unsent"))
    again = runner_for(MACHINE, MODEL, LANDSCAPE)
    assert run(request, again).verdict.kind is VerdictKind.CACHE_WINS
    assert [record.config for record in study_at(url).records].count(lost) >= 1
    assert again.launched[0] != lost
    assert not list(request.state_dir.glob("*.unsent"))
    nothing_is_doubled(study_at(url))


def test_a_study_dropped_under_a_search_ends_it_with_a_message(server: Server, url: str, tmp_path: Path) -> None:
    """`study drop` refuses while a worker lives; whoever deletes the rows all the same is not a bug of ours."""
    refused: list[MoetuneError] = []

    def drop(calls: int) -> None:
        if calls == 5:
            with pytest.raises(MoetuneError) as caught:
                Tables(quick(url)).drop(study_at(url).key)
            refused.append(caught.value)
            server.sql("TRUNCATE studies CASCADE", url.rsplit("/", 1)[1])

    with pytest.raises(MoetuneError, match="dropped") as caught:
        run(request_on(url, tmp_path / "a"), runner_that(drop))
    assert refused[0].code is ExitCode.BUSY
    assert caught.value.code is ExitCode.STORAGE


def test_two_real_engines_share_a_study_and_one_is_killed(url: str, tmp_path: Path) -> None:
    """The demo model on two emulated machines; the search ends as with one."""
    study, _ = killed_half_way(url, tmp_path, str(demo_model_path()))
    nothing_is_doubled(study)
    # On so small a machine the sampler may run out of what is new; what it repeats is a trial without a record.
    repeated = [trial for trial in study.trials if trial.state == "complete" and trial.record is None]
    tried = sum(r.origin in (Origin.SEED, Origin.SAMPLER) and r.launched for r in study.records)
    assert tried == 8 or len(repeated) >= 25
    assert all(r.measurement is None or r.measurement.tg_samples_s for r in study.records)
