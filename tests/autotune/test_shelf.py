"""Remembered studies: read while others write, found by a prefix, exported whole, and a start for later ones."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import Landscape
from world import gpu, machine_with, memory_of, moe_model, request_for, runner_for, still

from moetune.autotune.earlier import earlier_best
from moetune.autotune.events import Silent
from moetune.autotune.export import to_csv, to_json
from moetune.autotune.identity import identity_of
from moetune.autotune.journal import exclusive
from moetune.autotune.noise import ROUNDS
from moetune.autotune.race import Rules
from moetune.autotune.record import Origin
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.shelf import Journals, Shelf
from moetune.autotune.space import build_space
from moetune.autotune.study_table import studies_table, study_table
from moetune.engine.config import EngineConfig
from moetune.errors import ExitCode, MoetuneError

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
LANDSCAPE = Landscape(noise=0.02)


def run(request: SearchRequest) -> SearchResult:
    return search(request, runner_for(MACHINE, MODEL, LANDSCAPE), MACHINE, MODEL, Silent(), still)


def earlier(request: SearchRequest) -> tuple[EngineConfig, ...]:
    """What a search of this request would start from."""
    memory = memory_of(MACHINE, MODEL)
    space = build_space(MODEL, MACHINE.cpu, memory, request)
    return earlier_best(request.state_dir, None, identity_of(request, MACHINE, MODEL, space), space, memory)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SearchRequest:
    """A finished search."""
    request = request_for(tmp_path_factory.mktemp("state"), n_trials=6, rules=Rules(most_rounds=8))
    run(request)
    return request


def test_a_study_is_read_back_whole(small: SearchRequest, tmp_path: Path) -> None:
    """Trials, raw samples, who ran them, and the blocks of the side-by-side."""
    request = replace(small, state_dir=tmp_path)
    result = run(request)
    (study,) = Journals(tmp_path).read().studies
    assert tuple(study.records) == result.records
    assert result.race is not None
    assert len(study.blocks) == ROUNDS + len(result.race.rounds)
    assert study.best is not None
    assert study.best.turn_s == min(r.turn_s for r in result.records if r.turn_s)
    assert all(trial.worker for trial in study.trials)


def test_reading_disturbs_no_search(small: SearchRequest) -> None:
    """Also while one holds the study, with half a line at the end of its file."""
    (journal,) = small.state_dir.glob("*.journal")
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"wor')
    content = journal.read_bytes()
    with exclusive(journal.with_suffix(".busy")):
        (study,) = Journals(small.state_dir).read().studies
        assert len(study.records) > 6
        with pytest.raises(MoetuneError) as caught:
            Journals(small.state_dir).drop(study.key)
        assert caught.value.code is ExitCode.BUSY
    assert journal.read_bytes() == content


def test_a_damaged_study_hides_no_other(small: SearchRequest, tmp_path: Path) -> None:
    """It is named and left as it is."""
    run(replace(small, state_dir=tmp_path))
    (tmp_path / ("0" * 24 + ".journal")).write_bytes(b"garbage\nmore\n")
    shelf = Journals(tmp_path).read()
    assert len(shelf.studies) == len(shelf.unusable) == 1
    assert "0" * 24 in shelf.unusable[0].cause
    assert (tmp_path / ("0" * 24 + ".journal")).exists()


def test_a_dropped_study_is_gone(small: SearchRequest, tmp_path: Path) -> None:
    """The next search of it starts anew."""
    request = replace(small, state_dir=tmp_path, n_trials=1)
    run(request)
    Journals(tmp_path).drop(Journals(tmp_path).read().studies[0].key)
    assert Journals(tmp_path).read().studies == ()
    assert run(request).records


def test_a_prefix_names_a_study_if_it_is_the_only_one(small: SearchRequest) -> None:
    """Otherwise the error says what there is."""
    (study,) = Journals(small.state_dir).read().studies
    twin = replace(study, key=study.key[:6] + "0" * 18)
    shelf = Shelf((study, twin), ())
    assert shelf.find(study.key) == study
    for prefix, words in (
        (study.key[:4], "2 studies"),
        ("zz", "no study"),
        ("", "2 studies"),
    ):
        with pytest.raises(MoetuneError, match=words) as caught:
            shelf.find(prefix)
        assert caught.value.code is ExitCode.USAGE
    with pytest.raises(MoetuneError, match="no study"):
        Shelf((), ()).find("")


def test_json_holds_every_raw_sample(small: SearchRequest) -> None:
    """Of trials and of the race's rounds."""
    (study,) = Journals(small.state_dir).read().studies
    content = json.loads(to_json(study))
    assert content["identity"]["model_name"] == MODEL.name
    samples = [trial["outcome"]["tg_samples_s"] for trial in content["trials"] if trial.get("turn_s")]
    assert samples == [list(r.measurement.tg_samples_s) for r in study.records if r.measurement]
    raced = [len(run["measurement"]["tg_samples_s"]) for block in content["blocks"] for run in block["runs"]]
    assert raced
    assert set(raced) == {len(samples[0])}


def test_csv_has_a_line_a_trial(small: SearchRequest) -> None:
    """And a column a field, under its path."""
    (study,) = Journals(small.state_dir).read().studies
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert [int(row["number"]) for row in rows] == [trial.number for trial in study.trials]
    assert float(rows[0]["turn_s"]) == study.records[0].turn_s
    assert json.loads(rows[0]["outcome.pp_samples_s"])
    assert {"constraints.fast_memory_mib", "config.n_threads", "worker"} <= set(rows[0])


def test_tables_fit_a_terminal(small: SearchRequest) -> None:
    """80 columns, units in the headers, a row a trial; whatever is emulated says so."""
    (study,) = Journals(small.state_dir).read().studies
    text = f"{studies_table((study,))}\n{study_table(study)}"
    assert max(map(len, text.splitlines())) <= 80
    assert all(header in text for header in ("turn s", "pp tok/s", "tg tok/s", "constraint", "by"))
    assert "mulated" not in text
    emulated = replace(study, identity=replace(study.identity, machine_label="A CPU, EMU0 (emulated)"))
    assert "Emulated: no real device was measured." in study_table(emulated)


def test_the_best_of_another_context_is_tried_first_in_a_new_search(small: SearchRequest, tmp_path: Path) -> None:
    """As a configuration of the new search, measured again; with the slots that its baselines leave room for."""
    first = run(replace(small, state_dir=tmp_path, n_trials=12))
    request = replace(small, state_dir=tmp_path, n_ctx=1024)
    (config,) = earlier(request)
    assert config.n_ctx == 1024
    best = min(first.records, key=lambda r: r.turn_s or 1e9).config
    assert (config.n_threads, config.n_ubatch, config.type_k) == (best.n_threads, best.n_ubatch, best.type_k)
    assert (config.cache is None) == (best.cache is None)
    second = run(request)
    tried = next(r.config for r in second.records if r.origin is Origin.SEED)
    assert tried.cache is not None
    assert config.cache is not None
    assert 0.9 <= tried.cache.slots / config.cache.slots <= 1.1
    assert replace(tried, cache=replace(tried.cache, slots=config.cache.slots)) == config


def test_only_the_same_model_machine_and_engine_teach(small: SearchRequest) -> None:
    """And a study does not teach itself."""
    assert earlier(replace(small, n_ctx=1024))
    assert earlier(small) == ()
    assert earlier(replace(small, n_ctx=1024, engine_version="engine 2")) == ()
    (study,) = Journals(small.state_dir).read().studies
    other = replace(study.identity, n_ctx=1024)
    assert study.identity.teaches(other)
    assert not study.identity.teaches(replace(other, machine="another"))
    assert not study.identity.teaches(replace(other, model="another"))


def test_a_stored_configuration_reaches_the_engine_only_as_a_choice_of_the_space(
    small: SearchRequest, tmp_path: Path
) -> None:
    """A record that asks for a billion threads or for unknown memory is bent to what this machine offers."""
    run(replace(small, state_dir=tmp_path))
    (journal,) = tmp_path.glob("*.journal")
    text = journal.read_text()
    assert text.count('\\"n_threads\\":') > 6
    for threads in (4, 6, 8, 16):
        text = text.replace(f'\\"n_threads\\":{threads},', '\\"n_threads\\":1000000000,')
    journal.write_text(text)
    (config,) = earlier(replace(small, state_dir=tmp_path, n_ctx=1024))
    assert config.n_threads == 16
