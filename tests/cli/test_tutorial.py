"""docs/tutorial.md, followed literally: in an empty folder, by a user without any setting, in one shell."""

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest
from pages import DOCS, ROOT, read

PAGE = DOCS / "tutorial.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```\n(?:<!-- shows: (.*?) -->)?", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
# What a user's shell does not have, and a test's does.
NOT_A_USERS = ("PYTHON", "MOETUNE", "HOTCACHE", "EMU_", "VIRTUAL_ENV", "XDG_", "OMP_", "COV_", "PYTEST")
# `verify` says by its exit code that a gain was not shown again; on a busy machine it may not be.
MAY_FAIL = {"moetune profiles verify": (0, 9)}
LIMIT_S = 1800
DONE = "\x1e"


@dataclass(frozen=True)
class Typed:
    """A command, what the page says it prints, and the words that must be printed by its block."""

    command: str
    shown: str
    words: tuple[str, ...]


def blocks() -> list[list[Typed]]:
    """The page's consoles, up to where the reader goes on with a model of their own."""
    page = read(PAGE).split("\n## Your own model\n")[0]
    return [
        [
            Typed(command, shown, tuple(filter(None, (words or "").split(", "))))
            for command, shown in COMMAND.findall(text)
        ]
        for text, words in CONSOLE.findall(page)
    ]


def test_the_page_shows_what_the_test_looks_for() -> None:
    """Words that only a comment names would say nothing about the page."""
    assert len(blocks()) > 10
    for block in blocks():
        shown = "".join(typed.shown for typed in block)
        assert [word for word in block[0].words if word not in shown] == []


@pytest.fixture
def users_shell(tmp_path: Path) -> "subprocess.Popen[str]":
    """A shell in an empty folder, with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_A_USERS)}
    cache = subprocess.run(["python3", "-m", "pip", "cache", "dir"], capture_output=True, text=True, env=kept)
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    return subprocess.Popen(
        ["bash", "--norc"],
        cwd=folder,
        env=kept | {"HOME": str(home), "REPOSITORY": str(ROOT), "PIP_CACHE_DIR": cache.stdout.strip()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git") or not shutil.which("curl"), reason="the tutorial needs git and curl")
def test_the_tutorial_can_be_followed_literally(users_shell: "subprocess.Popen[str]") -> None:
    """Every command ends as it should, and each block prints the words that the page shows."""
    shell = users_shell
    limit = Timer(LIMIT_S, os.killpg, (shell.pid, signal.SIGKILL))
    limit.start()
    assert shell.stdin is not None
    assert shell.stdout is not None
    try:
        for block in blocks():
            printed = ""
            for typed in block:
                shell.stdin.write(f"{{ {typed.command}\n}} < /dev/null; echo '{DONE}'$?\n")
                shell.stdin.flush()
                code, text = answer(shell)
                print(f"$ {typed.command}\n{text}")
                allowed = next((codes for begin, codes in MAY_FAIL.items() if typed.command.startswith(begin)), (0,))
                assert code in allowed, text
                printed += text
            assert [word for word in block[0].words if word not in printed] == []
    finally:
        limit.cancel()
        # The server too, if a command before `kill` failed; nobody else is in this session.
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def answer(shell: "subprocess.Popen[str]") -> tuple[int, str]:
    """A command's exit status and what it printed."""
    assert shell.stdout is not None
    text = ""
    for line in shell.stdout:
        before, mark, status = line.partition(DONE)
        text += before
        if mark:
            return int(status), text
    raise AssertionError(f"the shell ended: {text}")
