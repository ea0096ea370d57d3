"""A tiny model, folders of its own for every test, and two ways to run a command: in this process and in another."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_outcome import Command, Outcome

from moetune.__main__ import main
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.writer import write_synthetic

MINE = """\
name: mine
description: So short that a test can wait for it.
depth_tokens: 0
prompt_tokens: 24
reply_tokens: 16
texts: [The quick brown fox jumps over the lazy dog.]
sample_prompt: Hello.
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Config, state and runtime folders inside the test's own folder."""
    monkeypatch.setenv("MOETUNE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOETUNE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MOETUNE_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the real format with random weights, made for at most 1024 tokens, without a chat template."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_synthetic(path, SyntheticSpec(layers=2, experts=4, used=2, embd=128, ff=64, kv_heads=1, context=1024))
    return path


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that measuring `slow` on it takes the better part of a second."""
    path = tmp_path_factory.mktemp("model") / "slow.gguf"
    write_synthetic(path, SyntheticSpec(layers=8, experts=16, used=4, embd=256, ff=256, context=1024))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A workload file that takes 40 tokens."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


@pytest.fixture
def slow(mine: str) -> str:
    """The same workload with so long a reply that a test can interfere while it is measured."""
    path = Path(mine)
    path.write_text(path.read_text().replace("reply_tokens: 16", "reply_tokens: 900"))
    return mine


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process; `piped` is its standard input, None a terminal."""

    def run(*arguments: str, piped: bytes | None = None) -> Outcome:
        stdin = io.TextIOWrapper(io.BytesIO(piped or b""))
        monkeypatch.setattr(stdin, "isatty", lambda: piped is None)
        monkeypatch.setattr(sys, "stdin", stdin)
        capfd.readouterr()
        code = main(list(arguments))
        written = capfd.readouterr()
        return Outcome(code, written.out, written.err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """Start a command as a process in a session of its own, so that signals reach what it started, as in a terminal."""

    def popen(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "moetune", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,
            # A test run in the background of a script inherits an ignored Ctrl-C; a terminal's shell passes on none.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    return popen
