"""A study's file and its lock: one search at a time, every finished trial kept whatever killed the last search."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from moetune.errors import ExitCode, MoetuneError


@contextmanager
def exclusive(lock_path: Path) -> Iterator[None]:
    """Hold the study; the operating system releases it when this process dies, however it dies."""
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(lock_path.parent, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MoetuneError(
                "Another search is running on the same model, machine, context and workload.",
                "Wait for it or stop it (Ctrl-C keeps what it measured); then run the same command again.",
                ExitCode.BUSY,
            ) from None
        except OSError as error:
            raise _unwritable(lock_path.parent, error) from None
        yield


def open_journal(path: Path) -> JournalStorage:
    """Open or create the journal; the caller holds the lock. A damaged one is moved aside, never deleted."""
    try:
        _drop_stale_append_lock(path)
        _set_torn_tail_aside(path)
        _check_lines(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise move_corrupt_aside(path, error) from None


def move_corrupt_aside(path: Path, error: Exception) -> MoetuneError:
    """Rename the journal and say so."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as refused:
        return _unwritable(path.parent, refused)
    return MoetuneError(
        f"The record of earlier trials {path} is corrupt ({str(error)[:120] or type(error).__name__}).",
        f"It was moved to {aside}; run the same command again to start a new search.",
        ExitCode.STORAGE,
    )


def _drop_stale_append_lock(path: Path) -> None:
    # Optuna's own lock outlives a killed process for 30 s. Ours is held here, so nobody can own Optuna's.
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink(missing_ok=True)


def _set_torn_tail_aside(path: Path) -> None:
    """A search killed while it wrote leaves half a line, which the next append would glue to its own."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        path.with_name(f"{path.name}.torn-{time.time_ns()}").write_bytes(content[whole:])
        file.truncate(whole)
        os.fsync(file.fileno())


def _check_lines(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            entry = json.loads(line)
            if not isinstance(entry, dict) or "op_code" not in entry:
                raise ValueError(f"line {number} is no journal entry")


def _unwritable(folder: Path, error: OSError) -> MoetuneError:
    return MoetuneError(
        f"The folder for searches {folder} cannot be used: {error.strerror or error}.",
        "Check who may write there and that the disk is not full.",
        ExitCode.STORAGE,
    )
