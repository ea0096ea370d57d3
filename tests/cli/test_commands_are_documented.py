"""docs/commands.md says everything that the program accepts and returns."""

import re
from pathlib import Path

import pytest
import typer.main

from moetune.cli.app import app
from moetune.errors import ExitCode

DOCUMENT = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
ROOT = typer.main.get_command(app)
COMMANDS = ROOT.commands  # type: ignore[attr-defined]


def section(command: str) -> str:
    """The part of the document between this command's heading and the next of its level."""
    found = re.search(rf"^## moetune {command}\b.*?(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"no section for {command}"
    return found[0]


def flags(command: object) -> list[str]:
    parameters = command.params  # type: ignore[attr-defined]
    return [flag for p in parameters if p.param_type_name == "option" for flag in (*p.opts, *p.secondary_opts)]


def every_flag(command: object) -> list[str]:
    """A command's own, and those of its subcommands."""
    below = getattr(command, "commands", {}).values()
    return [*flags(command), *(flag for sub in below for flag in flags(sub))]


def test_there_are_twelve_commands() -> None:
    """A new command must be documented and tested here."""
    assert sorted(COMMANDS) == [
        *("export", "inspect", "monitor", "plan", "probe", "profiles"),
        *("report", "run", "search", "serve", "study", "trace"),
    ]


def test_every_subcommand_is_documented() -> None:
    """In its command's section, as the user would type it."""
    for name, command in COMMANDS.items():
        for sub in getattr(command, "commands", {}):
            assert f"moetune {name} {sub}" in section(name)
            assert f"moetune {name} {sub}" in command.commands[sub].help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_flag_of_a_command_is_documented(name: str) -> None:
    """Each flag stands in its command's table, in code quotes."""
    text = section(name)
    assert every_flag(COMMANDS[name])
    assert [flag for flag in every_flag(COMMANDS[name]) if not re.search(rf"`{flag}[ `]", text)] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_flag_is_documented_that_does_not_exist(name: str) -> None:
    """The first column of a command's table names only flags that the command has."""
    rows = re.findall(r"^\| (`-[^|]*?) \|", section(name).replace(r"\|", "/"), re.MULTILINE)
    documented = {flag for row in rows for flag in re.findall(r"`(--?[a-z-]+)", row)}
    assert documented == set(every_flag(COMMANDS[name]))


def test_the_global_flags_are_documented() -> None:
    """--version stands before the first command."""
    head = DOCUMENT.split("\n## ")[0]
    assert [flag for flag in flags(ROOT) if f"`{flag}`" not in head] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_commands_help_shows_how_to_use_it(name: str) -> None:
    """Each docstring has an example that begins as the user would type it."""
    assert f"moetune {name} " in COMMANDS[name].help


def test_every_exit_code_is_documented_with_its_name() -> None:
    """The table lists the codes of ExitCode and no others."""
    table = DOCUMENT.split("## Exit codes")[1]
    rows = {int(code): name for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", table, re.MULTILINE)}
    assert rows == {code.value: code.name for code in ExitCode}
