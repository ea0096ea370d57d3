"""`moetune study`: what a real search left, listed, shown, exported and dropped; and what it refuses."""

import csv
import io
import json
from pathlib import Path

import pytest
from command_outcome import Command

from moetune.cli.machine import seen_machine
from moetune.engine.emulator import library_path
from moetune.engine.library import plugin_path
from moetune.errors import ExitCode

needs_engine = pytest.mark.skipif(
    not (library_path().is_file() and plugin_path().is_file()), reason="the native libraries are not built"
)


@needs_engine
def test_a_search_can_be_looked_at_taken_along_and_forgotten(
    command: Command, model_file: Path, mine: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One study from list to drop; a question that is not answered with yes deletes nothing."""
    monkeypatch.setattr("moetune.cli.search.measured_machine", seen_machine)
    searched = command(
        "search", str(model_file), "--workload", mine, "--ctx", "256", "--trials", "1", "--device", "none"
    )
    assert searched.code == 0, searched.err
    listed = command("study", "list")
    assert listed.code == 0
    key = listed.out.splitlines()[2].split()[0]
    assert "mine" in listed.out

    shown = command("study", "show", key[:4])
    assert shown.code == 0
    assert "stock, all on the CPU" in " ".join(shown.out.split())
    content = json.loads(command("study", "export", key).out)
    assert content["study"].startswith(key)
    samples = content["trials"][0]["outcome"]["tg_samples_s"]
    assert samples
    assert min(samples) > 0
    rows = list(csv.DictReader(io.StringIO(command("study", "export", key, "--format", "csv").out)))
    assert json.loads(rows[0]["outcome.tg_samples_s"]) == samples
    assert command("study", "export", key, "--out", str(folders / "s.json")).out == ""
    assert json.loads((folders / "s.json").read_text()) == content

    command("study", "drop", key, piped=b"").complains(ExitCode.USAGE, "--yes")
    asked = command("study", "drop", key)
    assert (asked.code, "Kept" in asked.err) == (0, True)
    dropped = command("study", "drop", key, "--yes")
    assert (dropped.code, dropped.out) == (0, "")
    assert key in dropped.err
    assert "no studies yet" in command("study", "list").err


@pytest.mark.parametrize("name", ["show", "export", "drop"])
def test_a_study_that_is_not_there(command: Command, name: str) -> None:
    """The error says where to look."""
    command("study", name, "4be1").complains(ExitCode.USAGE, "4be1", "moetune study list")


@pytest.mark.parametrize("arguments", [["search", "MODEL"], ["study", "list"], ["study", "show", "4be1"]])
def test_a_storage_that_cannot_be_used(
    command: Command, model_file: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command says why, in one message without the password, also when the environment names it."""
    monkeypatch.setattr("moetune.cli.search.measured_machine", seen_machine)
    given = [str(model_file) if argument == "MODEL" else argument for argument in arguments]
    wrong = command(*given, "--storage", "mysql://me:secret@host/db")
    wrong.complains(ExitCode.USAGE, "mysql", "postgresql://")
    assert "secret" not in wrong.err
    monkeypatch.setenv("MOETUNE_STORAGE", "postgresql://me:secret@127.0.0.1:1/db")
    away = command(*given)
    assert away.code == ExitCode.STORAGE
    assert "refused" in away.err
    assert "secret" not in away.err
    assert "Traceback" not in away.err
