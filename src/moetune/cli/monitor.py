"""`moetune monitor`."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.live import Live

from moetune.cli.formats import Format, Printed, written
from moetune.cli.output import show
from moetune.engine.activity import ACTIVITY, Activity
from moetune.engine.watching import watch_folder
from moetune.errors import ExitCode, MoetuneError
from moetune.monitor.history import History
from moetune.monitor.source import attached, replayed
from moetune.monitor.view import WIDTH, frame

# What one frame of a running engine is made from, so that it has rates; of a recording it is the last.
_SAMPLES_OF_ONE = 6


def monitor(
    pid: Annotated[
        int | None, typer.Option("--pid", min=1, help="The engine process to watch; default: the newest.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Show a recording instead of a running engine.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Also write every sample there.")
    ] = None,
    speed: Annotated[
        float, typer.Option("--speed", min=0.01, max=1000.0, help="Of a replay, times its own pace.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    format: Printed = Format.TABLE,
) -> None:
    """Watch a running `moetune run` or `moetune serve`: tokens, KV cache, experts, hit rates, memory.

    Ctrl-C ends the view, not what it watches. Without a terminal one frame is printed.

    \b
    moetune monitor
    moetune monitor --once --format json
    moetune monitor --record run.samples
    moetune monitor --replay run.samples --speed 4
    """
    if replay is not None and (pid is not None or record is not None):
        raise MoetuneError("--replay shows a recording.", "Leave --pid and --record out.", ExitCode.USAGE)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with ExitStack() as opened:
        samples = opened.enter_context(_samples(pid, replay, speed))
        if record is not None:
            samples = _recorded(samples, opened.enter_context(_opened(record)), record)
        if once or format is not Format.TABLE or not console.is_terminal:
            history = _seen(samples if replay is not None else islice(samples, _SAMPLES_OF_ONE))
            if format is Format.TABLE:
                console.print(frame(history, console.width))
            else:
                show(written(ACTIVITY.dump_python(history.now, mode="json"), format))
        else:
            _watch(samples, console)


def _samples(pid: int | None, replay: Path | None, speed: float) -> AbstractContextManager[Iterator[Activity]]:
    return attached(watch_folder(), pid) if replay is None else nullcontext(replayed(replay, speed))


def _opened(path: Path) -> BinaryIO:
    try:
        # Which experts a text uses says something about the text: for the owner alone.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.fchmod(file, 0o600)
        return os.fdopen(file, "wb")
    except OSError as error:
        raise _unwritable(path, error) from None


def _recorded(samples: Iterator[Activity], file: BinaryIO, path: Path) -> Iterator[Activity]:
    for sample in samples:
        try:
            file.write(ACTIVITY.dump_json(sample) + b"\n")
            file.flush()
        except OSError as error:
            raise _unwritable(path, error) from None
        yield sample


def _unwritable(path: Path, error: OSError) -> MoetuneError:
    return MoetuneError(
        f"The recording {path} cannot be written: {error.strerror or error}.",
        "Give --record a file in a folder that is writable and has room.",
        ExitCode.STORAGE,
    )


def _seen(samples: Iterable[Activity]) -> History:
    history = History()
    for sample in samples:
        history.add(sample)
    if not history.samples:
        raise MoetuneError("The engine ended before it was seen.", "Start it again.", ExitCode.ENGINE)
    return history


def _watch(samples: Iterator[Activity], console: Console) -> None:
    history = History()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for sample in samples:
                history.add(sample)
                live.update(frame(history, console.width, console.height), refresh=True)
    except KeyboardInterrupt:
        # The way out.
        return
    finally:
        if history.samples:
            console.print(frame(history, console.width, console.height))
