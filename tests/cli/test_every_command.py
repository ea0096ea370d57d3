"""What holds for every command: its help, its formats, its errors, completion, colours, and llama.cpp's log."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from command_outcome import Command
from typer.testing import CliRunner

from moetune.cli.app import app
from moetune.cli.output import note
from moetune.engine.library import plugin_path
from moetune.errors import ExitCode

Start = Callable[..., "subprocess.Popen[bytes]"]
ENGINE_COMMANDS = {"inspect", "plan", "probe", "run", "search", "serve", "trace", "profiles verify"}


def walk(command: object, *names: str) -> Iterator[tuple[tuple[str, ...], object]]:
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, *names, name)


ALL = dict(walk(typer.main.get_command(app)))
LEAVES = [names for names, command in ALL.items() if not hasattr(command, "commands")]


def takes(names: tuple[str, ...], flag: str) -> bool:
    return any(flag in p.opts for p in ALL[names].params)  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_help_has_an_example(command: Command, names: tuple[str, ...]) -> None:
    """As a line of its own that begins as the user would type it; nothing else is needed to see it."""
    done = command(*names, "--help")
    assert (done.code, done.err) == (ExitCode.OK, "")
    examples = [line.strip() for line in done.out.splitlines() if f"moetune {' '.join(names)}".strip() in line]
    assert [line for line in examples if not line.startswith("Usage")]
    assert command(*names, "-h").out == done.out


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_a_flag_that_does_not_exist(command: Command, names: tuple[str, ...]) -> None:
    """It is named, and where the right ones are listed."""
    command(*names, "--bogus").complains(ExitCode.USAGE, "--bogus", f"moetune {' '.join(names)} --help")


@pytest.mark.parametrize("names", [names for names in LEAVES if takes(names, "--format")], ids=" ".join)
def test_a_format_that_does_not_exist(command: Command, names: tuple[str, ...]) -> None:
    """Those that do are listed."""
    command(*names, "X", "--format", "xml").complains(ExitCode.USAGE, "--format", "xml", "json")


def needs(names: tuple[str, ...]) -> int:
    """How many arguments the command cannot do without."""
    return sum(p.param_type_name == "argument" and p.required for p in ALL[names].params)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["text", "binary", "folder", "nothing there", "too long", "too deep"])
@pytest.mark.parametrize("names", [names for names in LEAVES if needs(names)], ids=" ".join)
def test_an_argument_that_is_nothing_of_the_kind(
    command: Command, tmp_path: Path, names: tuple[str, ...], kind: str
) -> None:
    """Whatever file, folder or name it is given, a command says what is wrong and what to do, and does nothing."""
    path = tmp_path / "argument"
    match kind:
        case "text":
            path.write_text("name: x\nwhat: {unknown: 1}\n")
        case "binary":
            path.write_bytes(bytes(range(256)) * 64)
        case "folder":
            path.mkdir()
        case "too long":
            path = Path("x" * 5000)
        case "too deep":
            path.write_text("[" * 20_000)
    result = command(*names, *[str(path)] * needs(names))
    assert result.code in (ExitCode.USAGE, ExitCode.MODEL, ExitCode.STORAGE)
    result.complains(result.code)


@pytest.mark.parametrize("names", [names for names in LEAVES if needs(names)], ids=" ".join)
def test_an_argument_that_is_missing(command: Command, names: tuple[str, ...]) -> None:
    """It is named."""
    command(*names).complains(ExitCode.USAGE, "Missing argument", f"moetune {' '.join(names)} --help")


def numbers_of(names: tuple[str, ...]) -> list[str]:
    """Flags that take a number, by what the help says."""
    shown = CliRunner().invoke(app, [*names, "--help"]).output
    return re.findall(r"(--[a-z][\w-]*) <?(?:int|float|INTEGER|FLOAT)", shown)


@pytest.mark.parametrize("value", ["", "many", "1e400", "\x1b[2J"])
@pytest.mark.parametrize(
    ("names", "flag"), [(names, flag) for names in LEAVES for flag in numbers_of(names)], ids=lambda v: str(v)[:40]
)
def test_a_number_that_is_none(command: Command, names: tuple[str, ...], flag: str, value: str) -> None:
    """The flag is named, and no terminal code comes back."""
    result = command(*names, *["X"] * needs(names), flag, value)
    result.complains(ExitCode.USAGE, flag)
    assert "\x1b" not in result.err


def test_every_command_that_runs_the_engine_can_show_its_log() -> None:
    """And no other has the flag."""
    assert {" ".join(names) for names in LEAVES if takes(names, "--verbose")} == ENGINE_COMMANDS


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe", "--no-measure"],
        ["inspect", "MODEL"],
        ["plan", "MODEL", "--machine", "MACHINE"],
        ["study", "list"],
        ["profiles", "list"],
    ],
    ids=" ".join,
)
def test_json_and_yaml_say_the_same(command: Command, model_file: Path, folders: Path, arguments: list[str]) -> None:
    """All that a program reads is on standard output, and nothing else."""
    machine = folders / "machine.yaml"
    machine.write_text("cpu: {cores: 8}\nram: {gib: 32, gbps: 60}\n")
    filled = [{"MODEL": str(model_file), "MACHINE": str(machine)}.get(word, word) for word in arguments]
    outs = [command(*filled, "--format", form).out for form in ("json", "yaml")]
    found, again = json.loads(outs[0]), yaml.safe_load(outs[1])
    assert type(found) is type(again)
    assert shape(found) == shape(again)


def shape(value: object) -> object:
    """Everything but the figures, some of which are of the moment."""
    if isinstance(value, dict):
        return {key: shape(below) for key, below in value.items()}
    return [shape(below) for below in value] if isinstance(value, list) else isinstance(value, int | float)


@pytest.mark.skipif(not plugin_path().is_file(), reason="the native libraries are not built")
def test_llama_cpp_is_quiet_unless_asked(start: Start, model_file: Path) -> None:
    """Its log comes from the engine process too; the text stays alone on standard output."""
    quiet, loud = (
        start("run", str(model_file), "-p", "The fox", "--max-tokens", "4", "--ctx", "256", *flags).communicate(
            timeout=300
        )
        for flags in ((), ("--verbose",))
    )
    assert b"llama_model_loader" not in quiet[1]
    assert b"llama_model_loader" in loud[1]
    assert b"llama_context" in loud[1]
    assert quiet[0] == loud[0]


def test_the_log_is_shown_by_the_command_that_was_asked_only(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next command in the same process is quiet again."""
    from moetune.engine.native_log import LINES

    command("probe", "--no-measure", "--verbose")
    LINES.debug("a line of llama.cpp's \x1b[2J")
    assert "a line of llama.cpp's �[2J" in capfd.readouterr().err
    command("probe", "--no-measure")
    LINES.debug("another")
    assert "another" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("moetune ", {"search", "run", "inspect", "study", "serve", "export", "profiles"}),
        ("moetune study ", {"list", "show", "export", "drop"}),
        ("moetune run --max", {"--max-tokens"}),
        ("moetune probe --format ", {"table", "json", "yaml"}),
    ],
)
def test_a_shell_completes_commands_flags_and_values(start: Start, words: str, expected: set[str]) -> None:
    """By the protocol of bash, as the script of --show-completion speaks it."""
    split = words.split(" ")
    process = start(_MOETUNE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(split) - 1))
    out, err = process.communicate(timeout=60)
    assert expected <= set(out.decode().split()), err.decode()


def test_the_completion_script_can_be_shown(start: Start) -> None:
    """It names the program and the variable that the program listens to."""
    out, _ = start("--show-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").communicate(timeout=60)
    shown, _ = start("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").communicate(
        timeout=60
    )
    assert b"_MOETUNE_COMPLETE" in shown or b"_MOETUNE_COMPLETE" in out


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command shows on a terminal, its errors included."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "moetune", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        os.close(ours)
    process.wait(timeout=60)
    return shown.decode()


def test_errors_are_red_on_a_terminal_that_wants_colours() -> None:
    """NO_COLOR turns them off; a pipe never has any."""
    missing = ("run", "/nowhere/model.gguf", "-p", "hi")
    assert "\x1b[31merror:\x1b[0m There is no file /nowhere/model.gguf" in on_a_terminal(*missing)
    plain = on_a_terminal(*missing, NO_COLOR="1")
    assert "error: There is no file /nowhere/model.gguf" in plain
    assert "\x1b[" not in plain


def test_a_colour_changes_no_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Brackets in names are no markup, and long lines are not broken."""
    note("warning: [bold]" + "x" * 200)
    assert capfd.readouterr().err == "warning: [bold]" + "x" * 200 + "\n"
