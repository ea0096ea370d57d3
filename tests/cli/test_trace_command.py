"""`moetune trace` as a shell starts it: what it prints and keeps, and every way its input can be wrong."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from command_outcome import Command

from moetune.__main__ import main
from moetune.cli.machine import seen_machine
from moetune.demo import demo_model_path
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.writer import write_synthetic
from moetune.engine.library import plugin_path
from moetune.engine.model import read_model
from moetune.engine.routing_file import read_routing
from moetune.engine.routing_replay import POLICIES
from moetune.engine.routing_tables import WIDTH
from moetune.errors import ExitCode

Start = Callable[..., "subprocess.Popen[bytes]"]
LIMIT_S = 300
PROSE = "The quick brown fox jumps over the lazy dog. " * 12

pytestmark = pytest.mark.skipif(not plugin_path().is_file(), reason="the native libraries are not built")


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A text file called prose.txt."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    return str(path)


def test_both_workloads_of_the_demo_model_end_to_end(start: Start, folders: Path) -> None:
    """Tables for both, their overlap, a figure, and a file beside the profiles that holds every choice."""
    pytest.importorskip("matplotlib")
    model, figure = demo_model_path(), folders / "routing.png"
    flags = ["--workload", "code", "--workload", "long", "--tokens", "700", "--threads", "1", "--figure", str(figure)]
    code, out, err = finish(start("trace", str(model), *flags))
    assert code == 0, err
    assert max(len(line) for line in out.split("Recording:")[0].splitlines()) <= WIDTH
    for heading in (
        "Routing of code: 700",
        "Routing of long: 700",
        "Overlap",
        "Hit rate on the last 350 tokens of code",
    ):
        assert heading in out
    assert figure.read_bytes().startswith(b"\x89PNG")
    (kept,) = (folders / "config").rglob("*.moetrace")
    assert str(kept) in out
    routing = read_routing(kept)
    assert routing.model_fingerprint == read_model(model).fingerprint
    assert [(w.name, w.n_tokens) for w in routing.workloads] == [("code", 700), ("long", 700)]
    assert [int(counts.sum()) for counts in routing.counts[0]] == [700 * 4] * 4


def test_what_was_recorded_is_shown_again_without_a_new_pass(start: Start, model_file: Path, text: str) -> None:
    """The same tables from the file, also for programs, and with other slots and settings."""
    model = str(model_file)
    code, first, err = finish(start("trace", model, "--text", text, "--text", f"other={text}"))
    assert code == 0, err
    assert "recorded prose: " in err
    code, again, err = finish(start("trace", model))
    assert (code, err) == (0, "")
    assert again == first
    code, out, err = finish(start("trace", model, "--format", "json", "--slots", "3,1", "--set", "interval=2"))
    assert code == 0, err
    report = json.loads(out)
    assert [w["name"] for w in report["workloads"]] == ["prose", "other"]
    for workload in report["workloads"]:
        assert workload["hit_rates"]["slots"] == [1, 3]
        assert sorted(workload["hit_rates"]["rates"]) == sorted(POLICIES)
        for layer in workload["layers"]:
            assert sum(layer["counts"]) == workload["n_tokens"] * 2
    assert {(o["of"], o["shared"]) for o in report["overlaps"]} == {("prose", 1), ("other", 1)}


def test_the_file_can_lie_elsewhere(command: Command, model_file: Path, text: str, tmp_path: Path) -> None:
    """--out names it, for writing and for showing again."""
    out = tmp_path / "new" / "mine.moetrace"
    result = command("trace", str(model_file), "--text", text, "--out", str(out), "--ctx", "64", "--tokens", "200")
    assert result.code == 0, result.err
    assert read_routing(out).workloads[0].n_tokens == 200
    assert command("trace", str(model_file), "--out", str(out)).out == result.out
    assert list((tmp_path / "config").rglob("*.moetrace")) == []


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> bytes:
    """A good file of the tiny model."""
    folder = tmp_path_factory.mktemp("recording")
    (folder / "prose.txt").write_text(PROSE)
    path = folder / "r.moetrace"
    assert main(["trace", str(model_file), "--text", str(folder / "prose.txt"), "--out", str(path)]) == 0
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "longer", "changed", "another kind", "empty"])
def test_a_damaged_recording_is_an_error_and_stays_as_it_is(
    command: Command, model_file: Path, recording: bytes, tmp_path: Path, damage: str
) -> None:
    """Nothing is computed from it."""
    path, raw = tmp_path / "r.moetrace", recording
    middle = len(raw) // 2
    damaged = {
        "truncated": raw[:-1],
        "longer": raw + b"\0",
        "changed": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :],
        "another kind": b"GGUF" + raw[4:],
        "empty": b"",
    }[damage]
    path.write_bytes(damaged)
    result = command("trace", str(model_file), "--out", str(path))
    result.complains(ExitCode.STORAGE, str(path), "not valid", "--text")
    assert path.read_bytes() == damaged


def test_a_recording_of_another_model_is_refused(
    command: Command, slow_model: Path, recording: bytes, tmp_path: Path
) -> None:
    """Experts of one model say nothing about another's."""
    path = tmp_path / "r.moetrace"
    path.write_bytes(recording)
    command("trace", str(slow_model), "--out", str(path)).complains(ExitCode.STORAGE, "another model")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot be read"]),
        (b"", ["empty"]),
        (b" \n\t\n", ["empty"]),
        (b"Hi.", ["tokens", "at least 16"]),
        ("naïve ".encode("latin-1") * 50, ["UTF-8", "byte 2", "iconv"]),
        (PROSE.encode("utf-16"), ["UTF-8"]),
        (PROSE.encode() + b"\xe2\x82", ["UTF-8"]),
    ],
    ids=["missing", "empty", "blank", "short", "latin-1", "utf-16", "cut"],
)
def test_a_text_that_is_none(
    command: Command, model_file: Path, tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    """The file is named where that helps, and what to do instead."""
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    command("trace", str(model_file), "--text", str(path)).complains(ExitCode.USAGE, "bad", *words)
    assert list(tmp_path.rglob("*.moetrace")) == []


def test_only_as_much_of_a_file_is_read_as_is_wanted(command: Command, model_file: Path, tmp_path: Path) -> None:
    """A file of characters of three bytes, cut in the middle of one, and what is no text far behind that."""
    path = tmp_path / "long.txt"
    path.write_bytes(b"x" + "€".encode() * 4000 + b"\xff")
    result = command("trace", str(model_file), "--text", str(path), "--tokens", "40")
    assert result.code == 0, result.err
    assert "40 tokens" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["No routing of this model is recorded", "--text"]),
        (["--text", "FOLDER"], ["cannot be read"]),
        (["--text", "TEXT", "--text", "TEXT"], ["prose", "--text other=FILE"]),
        (["--text", "code=TEXT", "--workload", "code"], ["code"]),
        (["--text", "=TEXT"], ["NAME=FILE"]),
        (["--workload", "chta"], ["chta", "chat, code, long"]),
        (["--text", "TEXT", "--tokens", "3"], ["--tokens"]),
        (["--text", "TEXT", "--ctx", "5000"], ["5000", "1024"]),
        (["--text", "TEXT", "--ctx", "2"], ["--ctx"]),
        (["--text", "TEXT", "--threads", "0"], ["--threads"]),
        (["--text", "TEXT", "--set", "interval=0"], ["interval=0"]),
        (["--text", "TEXT", "--set", "slots=4"], ["slots=4", "hysteresis"]),
        (["--text", "TEXT", "--slots", "2,x"], ["--slots", "1 to 4"]),
        (["--text", "TEXT", "--slots", "5"], ["--slots", "1 to 4"]),
        (["--text", "TEXT", "--slots", ""], ["--slots"]),
        (["--text", "TEXT", "--figure", "routing.pdf"], [".png"]),
        (["--text", "x" * 5000], ["NAME=FILE"]),
        (["--text", "name=" + "x" * 5000], ["cannot be read"]),
        (["--text", "~nobody-of-that-name/x.txt"], ["cannot be read"]),
        (["--text", "x" * 300 + "=TEXT"], ["NAME=FILE"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_a_wrong_argument(
    command: Command, model_file: Path, text: str, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    """One message, code 2, before any pass."""
    filled = [a.replace("TEXT", text).replace("FOLDER", str(tmp_path)) for a in arguments]
    if any(a.startswith("--figure") for a in arguments):
        pytest.importorskip("matplotlib")
    command("trace", str(model_file), *filled).complains(ExitCode.USAGE, *words)


def test_a_dense_model_has_nothing_to_trace(command: Command, tmp_path: Path, text: str) -> None:
    """Said from the file's header, before anything is loaded."""
    (path,) = write_synthetic(
        tmp_path / "dense.gguf", SyntheticSpec(arch="qwen3", layers=1, experts=0, embd=128, ff=64)
    )
    command("trace", str(path), "--text", text).complains(ExitCode.MODEL, "dense.gguf", "no routed experts", "qwen3")


@pytest.mark.parametrize("kind", ["missing", "truncated", "text"])
def test_a_file_that_is_no_model(command: Command, tmp_path: Path, model_file: Path, text: str, kind: str) -> None:
    """Refused by name."""
    path = tmp_path / f"{kind}.gguf"
    if kind != "missing":
        path.write_bytes(model_file.read_bytes()[:5000] if kind == "truncated" else b"no model" * 40)
    command("trace", str(path), "--text", text).complains(ExitCode.MODEL, str(path))


def test_damaged_weights_are_an_error(command: Command, model_file: Path, text: str, tmp_path: Path) -> None:
    """A sound header in front of weights that are no numbers: no recording is made."""
    path = tmp_path / "damaged.gguf"
    raw = model_file.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + b"\xff" * (len(raw) - len(raw) // 2))
    command("trace", str(path), "--text", text).complains(ExitCode.ENGINE, "not a number")
    assert list(tmp_path.rglob("*.moetrace")) == []


def test_a_model_larger_than_memory_is_refused(
    command: Command, model_file: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As search and run refuse it, with the flag that allows it."""

    def tiny(*arguments: object) -> object:
        machine = seen_machine(*arguments)  # type: ignore[arg-type]
        return replace(machine, memory=replace(machine.memory, available_bytes=1 << 20))

    monkeypatch.setattr("moetune.cli.trace.seen_machine", tiny)
    command("trace", str(model_file), "--text", text).complains(ExitCode.MEMORY, "--allow-overcommit")
    assert command("trace", str(model_file), "--text", text, "--allow-overcommit").code == 0


def test_a_folder_that_cannot_be_written_stops_at_once(
    command: Command, model_file: Path, text: str, folders: Path
) -> None:
    """Before the pass, not after it."""
    (folders / "config").write_text("in the way")
    result = command("trace", str(model_file), "--text", text)
    result.complains(ExitCode.STORAGE, str(folders / "config"), "--out")


def test_a_figure_that_cannot_be_written_stops_at_once(
    command: Command, model_file: Path, text: str, tmp_path: Path
) -> None:
    """Its folder is a file."""
    pytest.importorskip("matplotlib")
    flags = ["--text", text, "--figure", f"{text}/routing.png"]
    command("trace", str(model_file), *flags).complains(ExitCode.STORAGE, text)
    assert list(tmp_path.rglob("*.moetrace")) == []


def test_a_file_with_an_equals_sign_in_its_name(command: Command, model_file: Path, tmp_path: Path) -> None:
    """It is taken as it is when it is there; a name before it still works."""
    path = tmp_path / "a=b.txt"
    path.write_text(PROSE)
    result = command("trace", str(model_file), "--text", str(path), "--text", f"named={path}")
    assert result.code == 0, result.err
    assert "recorded a=b: " in result.err
    assert "recorded named: " in result.err


def test_without_matplotlib_the_extra_is_named(
    command: Command, model_file: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only --figure needs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = ["trace", str(model_file), "--text", text]
    command(*flags, "--figure", str(tmp_path / "f.png")).complains(ExitCode.USAGE, "matplotlib", "moetune[plot]")
    assert command(*flags).code == 0


def test_an_interrupted_pass_leaves_the_last_recording_alone(start: Start, slow_model: Path, tmp_path: Path) -> None:
    """Ctrl-C while the model computes: exit code 130, no engine process left, the file as it was."""
    text = tmp_path / "prose.txt"
    text.write_text(PROSE * 800)
    path = tmp_path / "r.moetrace"
    path.write_bytes(b"the last one")
    flags = ["--text", str(text), "--tokens", "200000", "--threads", "1", "--out", str(path)]
    process = start("trace", str(slow_model), *flags)
    engine = loaded_engine(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, out) == (ExitCode.INTERRUPTED, "")
    assert not engine.is_running()
    assert path.read_bytes() == b"the last one"


def test_a_killed_engine_is_one_error(start: Start, slow_model: Path, tmp_path: Path) -> None:
    """kill -9 of the worker in the middle of the pass."""
    text = tmp_path / "prose.txt"
    text.write_text(PROSE * 800)
    process = start("trace", str(slow_model), "--text", str(text), "--tokens", "200000", "--threads", "1")
    loaded_engine(process.pid).kill()
    code, out, err = finish(process)
    assert (code, out) == (ExitCode.ENGINE, "")
    assert re.match(r"error: engine process crashed.*SIGKILL", err), err


def loaded_engine(parent: int) -> psutil.Process:
    """The command's engine process, once it has mapped the model's weights and begun."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.Error):
                # The vocabulary is read without mapping the file.
                if any(m.path.endswith("slow.gguf") for m in child.memory_maps()):
                    return child
        time.sleep(0.02)
    raise AssertionError("no engine process loaded the model")
