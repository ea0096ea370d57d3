"""The cache's settings from one file, read by the C++ code that reads the environment."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from compile import HERE, SOURCES, compile_program

Read = Callable[..., tuple[dict[str, str], list[str]]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [HERE / "print_settings.cpp", *sorted((SOURCES / "cache").glob("*.cpp"))]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compile_program(tmp_path_factory.mktemp("settings") / "print_settings", sources, flags=flags, ggml=False)


@pytest.fixture
def read(program: Path, tmp_path: Path) -> Read:
    """Settings and problems that a file with this content gives, the file's path written FILE in the problems."""

    def settings(content: str | bytes, **variables: str) -> tuple[dict[str, str], list[str]]:
        file = tmp_path / "hotcache.conf"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HOTCACHE_")}
        environment = {**clean, "HOTCACHE_CONFIG": str(file), **variables}
        done = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        values = dict(line.split("=", 1) for line in done.stdout.splitlines())
        return values, done.stderr.replace(str(file), "FILE").splitlines()

    return settings


@pytest.fixture
def defaults(read: Read) -> dict[str, str]:
    """What an empty file gives, which is what no file gives."""
    settings, problems = read("")
    assert (settings, problems) == read("", HOTCACHE_CONFIG="")
    assert problems == []
    return settings


def test_file_sets_what_it_says(read: Read, defaults: dict[str, str]) -> None:
    """Comments, blank lines, spaces and Windows line ends mean nothing; a # inside a word is part of it."""
    text = "# fast tier\r\n\n device=CUDA0\r\n\tslots = 16  # a layer\nprofile = /models/my#1.prof\ninterval=2"
    values, problems = read(text)
    assert problems == []
    assert values == defaults | {"device": "CUDA0", "slots": "16", "profile": "/models/my#1.prof", "interval": "2"}


def test_variables_win_over_the_file(read: Read, defaults: dict[str, str]) -> None:
    """What the environment says counts; the file fills in the rest."""
    values, problems = read("slots = 16\ninterval = 2\n", HOTCACHE_SLOTS="8")
    assert problems == []
    assert values == defaults | {"slots": "8", "interval": "2"}


def test_every_problem_names_its_line(read: Read, defaults: dict[str, str]) -> None:
    """A bad line is left out and named; the good ones count."""
    values, problems = read("slots = many\nintervall = 3\n\nslots\nhysteresis = 2\nhysteresis = 3\n = 4\ndevice =\n")
    assert [problem.split(": ")[0] for problem in problems] == [f"FILE:{line}" for line in (1, 2, 4, 6, 7, 8)]
    assert problems[0] == "FILE:1: slots=many: must be a number from 0 to 65536"
    assert problems[1].startswith("FILE:2: intervall: no such setting; there are ")
    assert problems[3] == "FILE:6: hysteresis is set a second time"
    assert values == defaults | {"hysteresis": "2"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"slots = 8\n" + b"#" * 65536, "FILE: is larger than 64 KiB: not a file of settings"),
        (b"slots = 8\n\0", "FILE: is not a text file"),
    ],
)
def test_nothing_counts_of_what_is_no_file_of_settings(
    read: Read, defaults: dict[str, str], content: bytes, problem: str
) -> None:
    """A model or an image given by mistake changes nothing."""
    assert read(content) == (defaults, [problem])


def test_overlong_lines_and_floods_of_problems_end(read: Read, defaults: dict[str, str]) -> None:
    """A line has a limit, and after 20 problems nothing more is read."""
    values, problems = read("profile = " + "x" * 1024 + "\n" + "junk\n" * 30 + "slots = 8\n")
    assert problems[0] == "FILE:1: longer than 1024 characters"
    assert problems[-1] == "FILE: not read any further"
    assert len(problems) == 21
    assert values == defaults


@pytest.mark.parametrize("path", ["/nonexistent/hotcache.conf", "/", "/dev/zero"])
def test_missing_file_is_said(read: Read, defaults: dict[str, str], path: str) -> None:
    """A file that is not there, a folder and a device are refused, and the variables still count."""
    values, problems = read("", HOTCACHE_CONFIG=path, HOTCACHE_SLOTS="8")
    assert problems == [f"{path}: is not a file that can be read; correct or unset HOTCACHE_CONFIG"]
    assert values == defaults | {"slots": "8"}
