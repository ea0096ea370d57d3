"""How far a long job is: a bar or a clock on a terminal, nothing elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_WHAT = TextColumn("{task.description}", markup=False)


class Bar:
    """Counts one job's steps on standard error and leaves nothing behind. A context manager."""

    def __init__(self, what: str, total: int) -> None:
        self._progress = _progress(_WHAT, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""
        self._progress.advance(self._task, steps)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is waited for, and how long already; leaves nothing behind."""
    with _progress(SpinnerColumn(), _WHAT, TimeElapsedColumn()) as progress:
        progress.add_task(what, total=None)
        yield


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
