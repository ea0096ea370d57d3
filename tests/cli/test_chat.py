"""The chat: what is sent, what its commands do, and what Ctrl-C means; with the real engine on a real terminal too."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from moetune.cli.chat import chat
from moetune.demo import demo_model_path
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats, Sampling, TextChunk
from moetune.engine.library import plugin_path
from moetune.engine.measurement import CacheCounters
from moetune.errors import ExitCode, MoetuneError

CONFIG = EngineConfig(n_ctx=100, n_threads=1)
SETTINGS = GenerationRequest("", max_tokens=25, sampling=Sampling(0.5, seed=3), chat=True)
COUNTERS = CacheCounters(hits=9, misses=3, promotions=1, bytes_moved=1 << 20, hot_s=0.1, cold_s=0.1, wait_s=0.0)
STATS = GenerationStats(4, 0.5, 10, 2.0, "end", COUNTERS, n_kept=7)
LIMIT_S = 120


class FakeEngine:
    """Answers every request with "A1", "A2" and so on; what it is asked to do in between happens first."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.loaded = 0
        self.stops = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def load(self, config: EngineConfig, *, time_limit_s: float) -> None:
        self.loaded += 1

    def prompt_tokens(self, config: EngineConfig, request: GenerationRequest, *, time_limit_s: float) -> int:
        return sum(len(m.content) for m in request.history) + len(request.prompt)

    def stop(self) -> None:
        self.stops += 1

    def generate(
        self, config: EngineConfig, request: GenerationRequest, *, time_limit_s: float
    ) -> Iterator[TextChunk | GenerationStats]:
        self.requests.append(request)
        yield TextChunk(f"A{len(self.requests)}")
        self.meanwhile()
        yield replace(STATS, stopped="asked") if self.stops else STATS


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def talk(engine: FakeEngine, *lines: str | type[BaseException], settings: GenerationRequest = SETTINGS) -> None:
    """A chat in which the user writes `lines` and then ends it with Ctrl-D."""
    said = iter([*lines, EOFError])

    def ask(prompt: str) -> str:
        line = next(said)
        if isinstance(line, str):
            return line
        raise line

    chat(engine, CONFIG, settings, emulated=False, ask=ask)  # type: ignore[arg-type]


def test_every_message_comes_with_those_before_it(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """In turn, with the settings as given; answers go to standard output, all else to standard error."""
    talk(engine, "one", "  ", "two")
    assert engine.loaded == 1
    assert [request.prompt for request in engine.requests] == ["one", "two"]
    assert [(m.role, m.content) for m in engine.requests[1].history] == [("user", "one"), ("assistant", "A1")]
    assert replace(engine.requests[1], prompt="", history=()) == SETTINGS
    written = capfd.readouterr()
    assert written.out == "A1\nA2\n"
    assert written.err.count("reply 10 tokens in 2.00 s (5.0 tok/s); hit rate 75%") == 2
    assert "after 7 kept" in written.err


def test_commands_begin_with_a_slash(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """A path is no command; one that does not exist brings the list; /exit ends, whatever follows."""
    talk(engine, "one", "/stats", "/clear", "/etc/passwd, what is it?", "/bogus", "/exit", "never")
    assert [request.prompt for request in engine.requests] == ["one", "/etc/passwd, what is it?"]
    assert engine.requests[1].history == ()
    said = capfd.readouterr().err
    assert "context     21 of 100 tokens" in said
    assert "75% of 12 routed pairs" in said
    assert "There is no /bogus" in said
    assert all(command in said for command in ("/help", "/stats", "/clear", "/exit"))


def test_the_oldest_messages_are_dropped_and_said(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """The context never holds more than there is room for beside the answer."""
    talk(engine, "x" * 40, "y" * 20, "z" * 20)
    assert [m.content for m in engine.requests[2].history] == ["y" * 20, "A2"]
    assert "the oldest 2 messages were dropped" in capfd.readouterr().err


def test_a_message_that_cannot_fit_costs_itself_only(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """The user hears the numbers and goes on."""
    talk(engine, "one", "x" * 90, "two")
    assert [request.prompt for request in engine.requests] == ["one", "two"]
    assert "has 90 tokens" in capfd.readouterr().err.replace("error: That message has 95", "error: That message has 90")


def test_an_engine_that_fails_costs_one_answer(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """Its error is shown as any other, and the chat goes on without that exchange."""

    def fail() -> None:
        engine.meanwhile = lambda: None
        raise MoetuneError("It crashed.", "Try again.", ExitCode.ENGINE)

    engine.meanwhile = fail
    talk(engine, "one", "two")
    assert engine.requests[1].history == ()
    assert "error: It crashed.\n  Try again." in capfd.readouterr().err


def test_interrupting_an_answer_stops_it_and_not_the_chat(
    engine: FakeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was said so far is remembered, and Ctrl-C means afterwards what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    engine.meanwhile = lambda: os.kill(os.getpid(), signal.SIGINT)
    talk(engine, "one")
    assert engine.stops == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped by you" in capfd.readouterr().err


def test_interrupting_an_answer_twice_ends_the_program(engine: FakeEngine) -> None:
    """The way out of an engine that does not stop."""

    def impatient() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    engine.meanwhile = impatient
    with pytest.raises(KeyboardInterrupt):
        talk(engine, "one")
    assert engine.stops == 1


def test_interrupting_at_the_prompt_ends_the_program_the_second_time(engine: FakeEngine) -> None:
    """Twice in a row, not with something said in between."""
    talk(engine, KeyboardInterrupt, "one", KeyboardInterrupt)
    assert len(engine.requests) == 1
    with pytest.raises(KeyboardInterrupt):
        talk(engine, KeyboardInterrupt, KeyboardInterrupt)


def own_terminal() -> None:
    """Make standard input the terminal of a new session, with a Ctrl-C that is not ignored, as a shell leaves it."""
    os.setsid()
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, kind: str = "xterm") -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moetune", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": kind, "NO_COLOR": "1"},
            preexec_fn=own_terminal,  # noqa: PLW1509
        )
        os.close(theirs)
        self._heard = b""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, *words: str) -> str:
        """Everything shown until the first of `words`, which is passed."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := [word for word in words if word.encode() in self._heard]):
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            piece = b""
            if ready:
                with suppress(OSError):  # the other end is closed
                    piece = os.read(self._ours, 4096)
            assert piece, self._heard.decode(errors="replace")
            self._heard += piece
        before, _, self._heard = self._heard.partition(found[0].encode())
        return before.decode(errors="replace")

    def end(self) -> int:
        """Its exit code, once all it still shows is read."""
        try:
            while os.read(self._ours, 4096):
                pass
        except OSError:
            os.close(self._ours)
        return self.process.wait(timeout=LIMIT_S)


@pytest.mark.skipif(not plugin_path().is_file(), reason="the native libraries are not built")
def test_a_chat_on_a_terminal_with_the_real_engine(folders: Path) -> None:
    """Ask, go on, stop an answer, look at the figures, and end: as a person would."""
    terminal = Terminal("run", str(demo_model_path()), "--ctx", "1024", "--max-tokens", "24")
    terminal.until("> ")
    terminal.type("def read_lines(path):\n")
    terminal.until("reply 24 tokens")
    terminal.until("> ")
    terminal.type("and now?\n")
    assert " kept" in terminal.until("reply 24 tokens")
    terminal.until("> ")
    terminal.type("/stats\n")
    assert "4 remembered, 0 dropped" in terminal.until("answers")
    terminal.until("> ")
    time.sleep(0.5)  # the line editor sees a Ctrl-C only once it waits for a key
    terminal.type("\x03")
    terminal.until("Ctrl-C again ends the chat.")
    terminal.type("/exit\n")
    assert terminal.end() == ExitCode.OK


@pytest.mark.skipif(not plugin_path().is_file(), reason="the native libraries are not built")
def test_an_answer_is_stopped_on_a_terminal(slow_model: Path, folders: Path) -> None:
    """Ctrl-C comes from the terminal to every process on it; the engine stops talking and the chat goes on."""
    terminal = Terminal("run", str(slow_model), "--ctx", "1024", "--max-tokens", "512", kind="dumb")
    assert "no chat template" in terminal.until("> ")
    terminal.type("The quick brown fox\n")
    terminal.until("The quick brown fox\r\n")
    terminal.until(*"abcdefghijklmnopqrstuvwxyz")  # on such a terminal nothing but the answer is shown now
    terminal.type("\x03")
    terminal.until("stopped by you")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.end() == ExitCode.OK
