"""A question before something is lost for good."""

import sys

import typer

from moetune.cli.output import note, printable
from moetune.errors import ExitCode, MoetuneError


def confirm(question: str, about: str) -> None:
    """Go on after a yes and end the command after anything else; MoetuneError (USAGE) where nobody can be asked."""
    if not sys.stdin.isatty():
        raise MoetuneError(f"Nobody can be asked {about}.", "Use --yes.", ExitCode.USAGE)
    sys.stderr.write(printable(f"{question} [y/N] "))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        note("Kept.")
        raise typer.Exit
