"""docs/commands.md and the page of every command say what the program accepts and returns, and nothing else."""

import re
from enum import Enum
from typing import Any

import pytest
from commands import ALL, LEAVES, ROOT, Names, arguments, flags, options
from pages import DOCS, blocks, read
from typer.testing import CliRunner

from moetune.cli.app import app
from moetune.errors import ExitCode

INDEX = read(DOCS / "commands.md")
COMMANDS = sorted(ROOT.commands)


def section(names: Names) -> str:
    """A command's page; of a command with subcommands the part under the subcommand's heading."""
    page = read(DOCS / "commands" / f"{names[0]}.md")
    assert page.startswith(f"# moetune {names[0]}\n")
    if len(names) == 1:
        return page
    found = re.search(rf"^## moetune {' '.join(names)}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section for {names}"
    return found[0]


def rows(names: Names) -> dict[str, str]:
    """The first cells of the command's table of flags, each with its default."""
    table = re.search(
        r"^\| (?:argument, )?flag \| default \| meaning \|\n\|[-|]+\|\n(.*?)(?=^(?!\|)|\Z)",
        section(names),
        re.MULTILINE | re.DOTALL,
    )
    if table is None:
        return {}
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[1].splitlines()]
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in cells), cells
    return {row[0].strip().replace(r"\|", "|"): row[1].strip() for row in cells}


def default_of(names: Names, flag: str) -> str:
    return next(default for cell, default in rows(names).items() if re.search(rf"`{flag}[` ]", cell))


def as_written(option: Any) -> str | None:
    """A default as it is typed; None where the program works it out when it runs."""
    if option.is_flag:
        return None if option.default is None else {False: "off", True: "on"}[option.default]
    value = option.default.value if isinstance(option.default, Enum) else option.default
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def test_every_command_has_a_page_and_a_line_in_the_index() -> None:
    """And there is no page without a command."""
    assert sorted(page.stem for page in (DOCS / "commands").glob("*.md")) == COMMANDS
    assert sorted(re.findall(r"^\| \[`moetune (\w+)[^|]*\]\(commands/\1\.md\)", INDEX, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_flag_is_in_the_commands_table_and_no_other(names: Names) -> None:
    """Each in code quotes, in the first column."""
    documented = [flag for cell in rows(names) for flag in re.findall(r"`(--?[a-z][\w-]*)", cell)]
    assert sorted(documented) == sorted(flags(ALL[names]))


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_default_is_in_the_table(names: Names) -> None:
    """As it would be typed, `off` for a switch; where the program works it out, the table says how, or `none`."""
    for option in options(ALL[names]):
        written = default_of(names, option.opts[0])
        expected = as_written(option)
        assert expected is None or written in (expected, f"`{expected}`"), option.opts
        assert option.envvar is None or f"`{option.envvar}`" in written


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_argument_is_in_the_table(names: Names) -> None:
    """With what it is called in the usage line, and whether it is needed."""
    for argument in arguments(ALL[names]):
        name = argument.metavar.removeprefix("-- ")
        assert (rows(names)[f"`{name}`"] == "needed") == argument.required


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_the_usage_line_is_the_helps(names: Names) -> None:
    """It stands above the table."""
    usage = CliRunner().invoke(app, [*names, "--help"]).output.partition("\n")[0].strip().removeprefix("Usage: ")
    assert f"```text\n{usage}\n```" in section(names).partition("\n| ")[0]


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_command_has_an_example_with_its_output(names: Names) -> None:
    """What was typed, and at least once what came."""
    page = DOCS / "commands" / f"{names[0]}.md"
    consoles = [block.text for block in blocks(page) if block.kind == "console"]
    mine = [text for text in consoles if f"moetune {' '.join(names)}" in text]
    assert [text for text in mine if re.search(r"^(?!\$ ).*\S", text, re.MULTILINE)]


def test_no_other_flags_are_mentioned() -> None:
    """A page that says `--flag` anywhere means one of moetune's or, where it says so, of another program."""
    known = {flag for command in ALL.values() for flag in flags(command)}
    for name in COMMANDS:
        text = read(DOCS / "commands" / f"{name}.md")
        alone = set(re.findall(r"`(--[a-z][a-z-]+)`", text)) - known
        assert alone <= {"--device", "--no-repack", "--no-host", "--env-file", "--split-mode"}, name


def test_the_global_flags_are_documented() -> None:
    """In the index, with help and completion."""
    assert [flag for flag in (*flags(ROOT), "--help", "-h") if f"`{flag}`" not in INDEX] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_which_exit_codes_there_are(name: str) -> None:
    """With their names; every command can succeed or be interrupted, and all but those that nobody can ask wrongly."""
    page = read(DOCS / "commands" / f"{name}.md")
    table = page.split("\n## Exit codes\n")[1].split("\n## ")[0]
    listed = {int(code): code_name for code, code_name in re.findall(r"^\| (\d+) \| (\w+) \| \S", table, re.MULTILINE)}
    assert {ExitCode.USAGE, ExitCode.STORAGE, ExitCode.INTERRUPTED} <= set(listed)
    assert all(ExitCode(code).name == code_name for code, code_name in listed.items())
    assert "\n## What it reads and writes\n" in page


def test_every_exit_code_is_documented_with_its_name() -> None:
    """The index lists the codes of ExitCode and no others."""
    table = INDEX.split("## Exit codes")[1]
    listed = {int(code): name for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", table, re.MULTILINE)}
    assert listed == {code.value: code.name for code in ExitCode}
