"""What goes where: results to standard output, everything about them to standard error."""

import sys
from textwrap import fill

WIDTH = 80


def note(text: str) -> None:
    """A line to standard error; names out of files and devices may be in it."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result, to standard output."""
    print(text, flush=True)


def wrapped(text: str, indent: str = "") -> str:
    """A sentence in lines that fit a terminal."""
    return fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def stream(text: str) -> None:
    """A piece of the model's text as it comes; on a terminal without the codes that could take it over."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not for the eye replaced: names in files may hold terminal codes."""
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)
