"""Where samples come from: the socket of a running engine, or a recording of one. Both are lines of JSON."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from moetune.engine.activity import ACTIVITY, LONGEST_LINE, Activity
from moetune.engine.watching import require_private
from moetune.errors import ExitCode, MoetuneError

_CONNECT_LIMIT_S = 2.0
# An engine that loads a large model may hold its interpreter for a while.
_SILENCE_LIMIT_S = 60.0
# Of a recording: longer pauses than this are not waited for.
_LONGEST_PAUSE_S = 2.0


def running(folder: Path) -> tuple[int, ...]:
    """Process ids of the engines that offer to be watched, the newest first."""
    found = [path for path in folder.glob("*.sock") if path.stem.isdigit() and _answers(path)]
    return tuple(int(path.stem) for path in sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True))


@contextmanager
def attached(folder: Path, pid: int | None) -> Iterator[Iterator[Activity]]:
    """Samples of a running engine until it ends, as they come. pid: None for the newest.

    Raises MoetuneError: USAGE when there is none, STORAGE when the folder is not this user's own.
    """
    if folder.exists():
        require_private(folder)
    pids = running(folder)
    if not pids or (pid is not None and pid not in pids):
        raise MoetuneError(
            f"No engine process {pid} can be watched."
            if pid is not None
            else "Nothing is running that can be watched.",
            "Start `moetune run` or `moetune serve` in another terminal"
            + (f"; running now: {', '.join(map(str, pids))}." if pids else "."),
            ExitCode.USAGE,
        )
    try:
        connection = _connect(folder / f"{pid or pids[0]}.sock")
    except OSError:
        raise MoetuneError("The engine ended just now.", "Start it again.", ExitCode.ENGINE) from None
    with connection:
        connection.settimeout(_SILENCE_LIMIT_S)
        with connection.makefile("rb") as lines:
            yield _live(lines)


def replayed(path: Path, speed: float) -> Iterator[Activity]:
    """Samples of a recording at `speed` times their own pace. Raises MoetuneError (STORAGE) for what is none."""
    before: float | None = None
    try:
        with path.open("rb") as file:
            for sample in _samples(file, str(path)):
                if before is not None:
                    time.sleep(min(max(0.0, sample.at_s - before), _LONGEST_PAUSE_S) / speed)
                before = sample.at_s
                yield sample
    except OSError as error:
        raise MoetuneError(
            f"The recording {path} cannot be read: {error.strerror or error}.", "Check its path.", ExitCode.STORAGE
        ) from None
    if before is None:
        raise MoetuneError(f"The recording {path} is empty.", "Record again with --record.", ExitCode.STORAGE)


def _live(lines: BinaryIO) -> Iterator[Activity]:
    try:
        yield from _samples(lines, "the engine process")
    except OSError:
        # The engine is gone, or silent for so long that it might as well be.
        return


def _samples(lines: BinaryIO, source: str) -> Iterator[Activity]:
    number = 0
    while line := lines.readline(LONGEST_LINE):
        number += 1
        try:
            yield ACTIVITY.validate_json(line)
        except ValidationError as error:
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                return  # whoever wrote it was stopped in the middle
            raise MoetuneError(
                f"Line {number} of {source} is no sample: {error.errors()[0]['msg']}.",
                "Record it again, with this version of moetune.",
                ExitCode.STORAGE,
            ) from None


def _answers(path: Path) -> bool:
    try:
        _connect(path).close()
    except OSError:
        return False
    return True


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_LIMIT_S)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection
