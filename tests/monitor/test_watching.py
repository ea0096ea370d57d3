"""The socket between an engine and its watchers: private, for the same user, and no burden."""

import json
import socket
import stat
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from samples import sample

from moetune.engine.activity import ACTIVITY, Activity
from moetune.engine.watching import Watchtower
from moetune.errors import ExitCode, MoetuneError
from moetune.monitor.source import attached, replayed, running


class Engine:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = count()
        self.n_asked = 0

    def read(self) -> Activity:
        self.n_asked = next(self.asked) + 1
        return sample(self.n_asked)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runtime"


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    watched = Engine()
    with Watchtower(folder / "4711.sock", watched.read):
        yield watched


def test_a_watcher_sees_samples_as_they_come(engine: Engine, folder: Path) -> None:
    """By process id or as the newest; the engine is asked only while somebody watches."""
    assert engine.n_asked == 0
    assert running(folder) == (4711,)
    for pid in (None, 4711):
        with attached(folder, pid) as samples:
            first, second = islice(samples, 2)
        assert second.reply_tokens > first.reply_tokens
    assert engine.n_asked >= 4


def test_nothing_is_left_when_the_engine_ends(folder: Path) -> None:
    """Its socket goes, its watchers' samples end."""
    seen: list[Activity] = []
    with Watchtower(folder / "1.sock", Engine().read):
        opened = attached(folder, None)
        samples = opened.__enter__()
        seen.append(next(samples))
        reader = threading.Thread(target=lambda: seen.extend(samples))
        reader.start()
    reader.join(timeout=10)
    assert not reader.is_alive()
    opened.__exit__(None, None, None)
    assert list(folder.iterdir()) == []
    with pytest.raises(MoetuneError, match="Nothing is running") as caught, attached(folder, None):
        pass
    assert caught.value.code is ExitCode.USAGE


def test_the_socket_is_in_a_folder_that_only_its_user_may_enter(engine: Engine, folder: Path) -> None:
    """One that others may enter, or a link to one, is refused by both ends."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    for attempt in (lambda: Watchtower(folder / "2.sock", engine.read), lambda: attached(folder, None).__enter__()):
        with pytest.raises(MoetuneError, match="closed to others") as caught:
            attempt()
        assert caught.value.code is ExitCode.STORAGE
    folder.chmod(0o700)
    link = folder.with_name("link")
    link.symlink_to(folder)
    with pytest.raises(MoetuneError, match="folder of your own"):
        Watchtower(link / "2.sock", engine.read)


def test_another_engines_pid_is_named(engine: Engine, folder: Path) -> None:
    """The error says which there are."""
    with pytest.raises(MoetuneError) as caught, attached(folder, 99):
        pass
    assert "99" in caught.value.cause
    assert "4711" in caught.value.remedy


def test_a_watcher_that_does_not_read_keeps_nobody_waiting(engine: Engine, folder: Path) -> None:
    """Others still get their samples; the seventeenth watcher is turned away."""
    idle = [socket.socket(socket.AF_UNIX) for _ in range(14)]
    for each in idle:
        each.connect(str(folder / "4711.sock"))
    with attached(folder, None) as samples:
        assert len(list(islice(samples, 3))) == 3
        last = socket.socket(socket.AF_UNIX)
        idle += [socket.socket(socket.AF_UNIX), last]
        for each in idle[-2:]:
            each.connect(str(folder / "4711.sock"))
        last.settimeout(5)
        assert last.recv(10) == b""
    for each in idle:
        each.close()


def test_a_recording_is_seen_as_it_was(tmp_path: Path) -> None:
    """Every sample, faster if told so; half a line at the end is left out."""
    samples = [sample(at) for at in range(5)]
    path = tmp_path / "run.samples"
    path.write_bytes(b"".join(ACTIVITY.dump_json(each) + b"\n" for each in samples) + b'{"model": "x"')
    assert list(replayed(path, 1000)) == samples


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"garbage\n", "Line 1"),
        (b'{"model": "x"}\n', "Line 1"),
        (b"\xff\xfe\n", "Line 1"),
        (ACTIVITY.dump_json(sample(1)).replace(b'"cells":522', b'"cells":-1') + b"\n", "Line 1"),
        (ACTIVITY.dump_json(sample(1)).replace(b'"at_s":1000000.25', b'"at_s":1e400') + b"\n", "Line 1"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """With the line at fault."""
    path = tmp_path / "run.samples"
    path.write_bytes(content)
    with pytest.raises(MoetuneError, match=words) as caught:
        list(replayed(path, 1000))
    assert caught.value.code is ExitCode.STORAGE


def test_a_recording_with_a_thing_too_many_is_refused(tmp_path: Path) -> None:
    """Fields and lists are bounded."""
    path = tmp_path / "run.samples"
    wide = json.loads(ACTIVITY.dump_json(sample(1)))
    wide["layers"] = wide["layers"][:1] * 5000
    path.write_text(json.dumps(wide) + "\n")
    with pytest.raises(MoetuneError, match="at most 4096"):
        list(replayed(path, 1000))
