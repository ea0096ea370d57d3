"""What goes where: results to standard output, everything about them to standard error."""

import logging
import sys
from collections.abc import Iterable
from textwrap import fill

from rich.console import Console
from rich.text import Text

from moetune.engine.native_log import LINES
from moetune.errors import MoetuneError

WIDTH = 80
_COLOURS = {"error:": "red", "warning:": "yellow"}


def note(text: str) -> None:
    """A line to standard error; names out of files and devices may be in it."""
    line = printable(text, keep="\n\t")
    first = line.partition(" ")[0]
    if first in _COLOURS and sys.stderr.isatty():
        # rich leaves colours out where NO_COLOR is set or the terminal has none.
        shown = Text.assemble((first, _COLOURS[first]), line.removeprefix(first))
        Console(stderr=True, soft_wrap=True).print(shown)
    else:
        print(line, file=sys.stderr, flush=True)


def report(error: MoetuneError) -> None:
    """The cause, and below it the remedy."""
    note(f"error: {error.cause}")
    for line in error.remedy.splitlines():
        note(f"  {line}")


def show(text: str) -> None:
    """A result, to standard output."""
    print(text, flush=True)


def wrapped(text: str, indent: str = "") -> str:
    """A sentence in lines that fit a terminal; words that do not, such as paths, stay whole."""
    return fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def listed(parts: Iterable[str]) -> str:
    """The parts with semicolons between them, in lines that fit a terminal; none is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 <= WIDTH:
            lines[-1] += f"; {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def stream(text: str) -> None:
    """A piece of the model's text as it comes; on a terminal without the codes that could take it over."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not for the eye replaced: names in files may hold terminal codes."""
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


def show_engine_log(wanted: bool) -> bool:
    """Let every line that llama.cpp logs, here and in engine processes, be a note from now on, or none."""
    LINES.handlers = [_Notes()] if wanted else []
    LINES.setLevel(logging.DEBUG if wanted else logging.NOTSET)
    return wanted
