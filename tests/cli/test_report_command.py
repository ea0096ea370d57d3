"""`moetune report`: from a real search to a page, and what it refuses."""

import re
from importlib.util import find_spec
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
def test_a_search_becomes_a_page_and_pictures(
    command: Command, model_file: Path, mine: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the model's file as from the study's name; charts without data are named, not drawn."""
    monkeypatch.setattr("moetune.cli.search.measured_machine", seen_machine)
    searched = command(
        "search", str(model_file), "--workload", mine, "--ctx", "256", "--trials", "1", "--device", "none"
    )
    assert searched.code == 0, searched.err
    page, pictures = folders / "report.html", folders / "pictures"
    made = command("report", str(model_file), "--out", str(page), "--png", str(pictures))
    assert (made.code, made.out.splitlines()) == (0, [f"Report: {page}", f"Pictures: {pictures}"])
    content = page.read_text()
    assert "Baselines and finalists" in content
    drawn = set(re.findall(r'id="data-([a-z-]+)"', content))
    assert {path.stem for path in pictures.glob("*.png")} == drawn >= {"regret", "turn-times"}
    assert "not drawn: Hit rate against slots" in made.err

    monkeypatch.chdir(folders)
    key = command("study", "list").out.splitlines()[2].split()[0]
    assert command("report", key).out == f"Report: {folders / f'moetune-report-{key}.html'}\n"


def test_what_there_is_no_study_of(command: Command, model_file: Path, tmp_path: Path) -> None:
    """The error says where to look, or how to begin."""
    command("report", "4be1").complains(ExitCode.USAGE, "4be1", "moetune study list")
    command("report", str(model_file)).complains(ExitCode.USAGE, "moetune search")
    command("report", str(tmp_path / "none.gguf")).complains(ExitCode.MODEL, "none.gguf")


def test_without_its_libraries_it_says_how_to_get_them(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read."""

    def missing(name: str) -> object:
        return None if name == "plotly" else find_spec(name)

    monkeypatch.setattr("moetune.cli.extras.find_spec", missing)
    command("report", "4be1").complains(ExitCode.USAGE, "plotly", "moetune[report]")
