"""The live display of a search: one line on a terminal, plain lines elsewhere."""

import time
from textwrap import fill
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from moetune.autotune.events import Phase
from moetune.autotune.record import Origin, TrialRecord
from moetune.autotune.table import WIDTH
from moetune.autotune.words import describe
from moetune.engine.config import EngineConfig


class Display:
    """Shows trial n of N, its configuration, the best against the best baseline, and the time left.

    A context manager and a `SearchEvents`. `emulated` is said in every line that shows a figure.
    """

    def __init__(self, console: Console, n_layers: int, *, emulated: bool) -> None:
        self._console = console
        self._n_layers = n_layers
        self._mark = " (emulated)" if emulated else ""
        self._live = Live(console=console, transient=True, refresh_per_second=2) if console.is_terminal else None
        self._phase = Phase.PREPARE
        self._total = 0
        self._done = 0
        self._phase_began_s = time.monotonic()
        self._current = ""
        self._standing = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, phase: Phase, total: int) -> None:
        """A part of the search begins."""
        self._phase, self._total, self._done, self._current = phase, total, 0, ""
        self._phase_began_s = time.monotonic()
        self._refresh()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._print(text)

    def trial_started(self, origin: Origin, name: str, config: EngineConfig) -> None:
        """A configuration is being measured."""
        words = describe(config, self._n_layers)
        self._current = f"{name}: {words}" if name else words
        self._refresh()

    def trial_finished(self, record: TrialRecord, best: TrialRecord | None, baseline: TrialRecord | None) -> None:
        """A line for the trial, and the standing."""
        self._standing = _standing(best, baseline)
        if not record.launched and record.origin is Origin.SAMPLER:
            return
        self._done += 1
        outcome = f"{record.turn_s:.3g} s a turn" if record.turn_s is not None else f"failed: {record.failure}"
        count = f"[{self._done}/{max(self._total, self._done)}]" if self._total else f"[{self._done}]"
        self._print(f"{self._phase} {count} {outcome}{self._mark}: {self._current}")
        self._refresh()

    def race_progress(self, standing: str) -> None:
        """A round begins."""
        self._current = standing
        if self._live is None:
            self._print(f"{self._phase}: {standing}{self._mark}")
        self._refresh()

    def _print(self, text: str) -> None:
        width = min(WIDTH, self._console.width)
        lines = fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        # Names come from files: brackets in them are no markup.
        self._console.print(lines, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is None:
            return
        grid = Table.grid(padding=(0, 1))
        count = f" {min(self._done + 1, self._total)} of {self._total}" if self._total else ""
        grid.add_row(f"{self._phase}{count}")
        if self._current:
            grid.add_row(self._current)
        standing = self._standing + self._mark if self._standing else ""
        status = ", ".join(part for part in (standing, self._left()) if part)
        if status:
            grid.add_row(status)
        self._live.update(grid, refresh=True)

    def _left(self) -> str:
        if not self._done or not self._total:
            return ""
        each_s = (time.monotonic() - self._phase_began_s) / self._done
        left_s = each_s * max(0, self._total - self._done)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        return f"about {left} of this phase left"


def _standing(best: TrialRecord | None, baseline: TrialRecord | None) -> str:
    if best is None or best.turn_s is None:
        return ""
    text = f"best {best.turn_s:.3g} s a turn"
    if baseline is not None and baseline.turn_s is not None:
        text += f", {baseline.turn_s / best.turn_s:.2f}× {baseline.name} (not proven yet)"
    return text
