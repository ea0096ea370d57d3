"""The engine's end of `moetune monitor`: a socket in a private folder that whoever may use this account can read.

Nobody watching costs nothing: the thread sleeps until somebody connects.
"""

import os
import selectors
import socket
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from moetune.engine.activity import ACTIVITY, Activity
from moetune.errors import ExitCode, MoetuneError

FOLDER_VARIABLE = "MOETUNE_RUNTIME_DIR"
EVERY_S = 0.25
_MOST_WATCHERS = 16
_SEND_LIMIT_S = 1.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


def watch_folder() -> Path:
    """Where engines' sockets are: a folder of this user's in `XDG_RUNTIME_DIR` or the one for temporary files."""
    override, runtime = os.environ.get(FOLDER_VARIABLE), os.environ.get("XDG_RUNTIME_DIR")
    if override:
        return Path(override)
    return Path(runtime) / "moetune" if runtime else Path(tempfile.gettempdir()) / f"moetune-{os.getuid()}"


def require_private(folder: Path) -> None:
    """Make the folder for its owner alone; MoetuneError (STORAGE) where it is somebody else's, or open to others."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise _unusable(folder, str(error.strerror or error)) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise _unusable(folder, "it must be a folder of your own, closed to others (mode 700)")


class Watchtower:
    """Serves samples to the processes of this user that connect. read: makes one; called on a thread of its own."""

    def __init__(self, path: Path, read: Callable[[], Activity]) -> None:
        """Raises MoetuneError (STORAGE) when there can be no socket at `path`."""
        require_private(path.parent)
        _sweep(path.parent)
        self.path, self._read = path, read
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(str(path))
        except OSError as error:
            self._listener.close()
            raise _unusable(path, str(error.strerror or error)) from None
        self._listener.listen(_MOST_WATCHERS)
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="watchtower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop_write.close()
        self._thread.join(timeout=2 * _SEND_LIMIT_S)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        watchers: list[socket.socket] = []
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._stop_read, selectors.EVENT_READ)
            while True:
                events = {key.fileobj for key, _ in ready.select(EVERY_S if watchers else None)}
                if self._stop_read in events:
                    break
                if self._listener in events:
                    watchers += self._admit(len(watchers))
                elif watchers:
                    line = ACTIVITY.dump_json(self._read()) + b"\n"
                    watchers = [watcher for watcher in watchers if _sent(watcher, line)]
        for watcher in watchers:
            watcher.close()

    def _admit(self, n_watchers: int) -> list[socket.socket]:
        connection, _ = self._listener.accept()
        if not _is_own(connection) or n_watchers >= _MOST_WATCHERS:
            connection.close()
            return []
        connection.settimeout(_SEND_LIMIT_S)
        return [connection]


def _sweep(folder: Path) -> None:
    """Remove what engines left that were killed."""
    for path in folder.glob("*.sock"):
        if path.stem.isdecimal() and not psutil.pid_exists(int(path.stem)):
            path.unlink(missing_ok=True)


def _is_own(connection: socket.socket) -> bool:
    """Whether it is of this user; elsewhere than on Linux the folder alone sees to that."""
    if sys.platform != "linux":
        return True
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.getuid())


def _sent(watcher: socket.socket, line: bytes) -> bool:
    """False, and closed, for one that has gone or does not keep up."""
    try:
        watcher.sendall(line)
    except OSError:
        watcher.close()
        return False
    return True


def _unusable(path: Path, why: str) -> MoetuneError:
    return MoetuneError(
        f"{path} cannot be used for `moetune monitor`: {why}.",
        f"Set {FOLDER_VARIABLE} to a folder of your own.",
        ExitCode.STORAGE,
    )
