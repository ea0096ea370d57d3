"""Every command that the program has, as typer built it; so no test keeps a list of its own."""

from collections.abc import Iterator
from typing import Any

import typer.main

from moetune.cli.app import app

Names = tuple[str, ...]


def _walk(command: Any, *names: str) -> Iterator[tuple[Names, Any]]:
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _walk(below, *names, name)


ROOT: Any = typer.main.get_command(app)
ALL: dict[Names, Any] = dict(_walk(ROOT))
LEAVES = [names for names, command in ALL.items() if not hasattr(command, "commands")]


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option"]


def arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def flags(command: Any) -> list[str]:
    """All of a command's flags, as typed."""
    return [flag for p in options(command) for flag in (*p.opts, *p.secondary_opts)]
