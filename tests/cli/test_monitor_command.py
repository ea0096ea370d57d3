"""`moetune monitor`: a real run seen from another process, a recording of it, and what is refused."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_outcome import Command

from moetune.engine.emulator import library_path
from moetune.engine.library import plugin_path
from moetune.errors import ExitCode

needs_engine = pytest.mark.skipif(
    not (library_path().is_file() and plugin_path().is_file()), reason="the native libraries are not built"
)


@pytest.fixture
def runtime(folders: Path) -> Path:
    """Where the engines' sockets are."""
    return folders / "runtime"


@needs_engine
def test_a_run_is_seen_from_outside_and_can_be_seen_again(
    command: Command, start: Callable[..., "subprocess.Popen[bytes]"], slow_model: Path, runtime: Path, tmp_path: Path
) -> None:
    """Tokens flow while it answers; the recording shows the same; watching does not end the run."""
    watched = start("run", str(slow_model), "-p", "Hello", "--raw", "--max-tokens", "900")
    deadline = time.monotonic() + 120
    while not list(runtime.glob("*.sock")) and time.monotonic() < deadline:
        time.sleep(0.1)
    recording = tmp_path / "run.samples"
    live = command("monitor", "--once", "--record", str(recording))
    assert live.code == 0, live.err
    assert "positions" in live.out
    assert recording.stat().st_mode & 0o077 == 0
    again = command("monitor", "--replay", str(recording), "--speed", "100")
    assert again.out == live.out
    sample = json.loads(command("monitor", "--replay", str(recording), "--speed", "100", "--format", "json").out)
    assert sample == json.loads(recording.read_text().splitlines()[-1])
    assert sample["kv"][0]["running"]
    watched.communicate(timeout=300)
    assert watched.returncode == 0
    assert list(runtime.glob("*.sock")) == []


def test_nothing_to_watch(command: Command) -> None:
    """The error says what to start."""
    command("monitor").complains(ExitCode.USAGE, "moetune run")
    command("monitor", "--pid", "4711").complains(ExitCode.USAGE, "4711")


def test_flags_that_contradict_each_other(command: Command, tmp_path: Path) -> None:
    """A replay has no process and is not recorded again."""
    file = str(tmp_path / "x")
    command("monitor", "--replay", file, "--pid", "1").complains(ExitCode.USAGE, "--pid")
    command("monitor", "--replay", file).complains(ExitCode.STORAGE, "x")
