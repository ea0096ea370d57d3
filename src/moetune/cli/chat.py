"""A chat in the terminal: lines in, streamed answers out, commands that begin with a slash."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from moetune.cli.conversation import Conversation
from moetune.cli.output import note, report
from moetune.cli.progress import waiting
from moetune.cli.reply import TIME_LIMIT_S, figures, stream_reply
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest
from moetune.engine.runner import EngineRunner
from moetune.errors import MoetuneError

_COMMAND = re.compile(r"/[a-z]+")
_HELP = """\
/help   this list
/stats  what the chat took so far: tokens, speeds, hit rate
/clear  begin anew; the model stays loaded and its experts in their slots
/exit   end; so do Ctrl-D, and Ctrl-C twice
Ctrl-C stops an answer. What is pasted as several lines is one message."""
_RAW = """\
Without a chat template the model goes on with the text as it stands: what you
write is appended to all that was written so far."""


def chat(
    runner: EngineRunner,
    config: EngineConfig,
    settings: GenerationRequest,
    *,
    emulated: bool,
    ask: Callable[[str], str] = input,
) -> None:
    """Talk until the user ends it. `settings`: each request without its text; `ask` reads a line after a prompt.

    Raises MoetuneError when the model does not load, and KeyboardInterrupt for Ctrl-C twice where a line is read. What
    goes wrong with one answer is said and costs that answer.
    """
    with suppress(ImportError):  # a Python without it reads lines that cannot be edited
        import readline  # noqa: F401
    with waiting("loading the model"):
        runner.load(config, time_limit_s=TIME_LIMIT_S)
    if not settings.chat:
        note(_RAW)
    note("/help lists the commands; Ctrl-C stops an answer.")
    talk = Conversation(settings, config.n_ctx)
    for text in _lines(ask):
        command = text.strip()
        if command == "/exit":
            return
        if _COMMAND.fullmatch(command):
            _obey(command, talk)
            continue
        try:
            _answer(runner, config, talk, text, emulated=emulated)
        except MoetuneError as error:
            report(error)


def _lines(ask: Callable[[str], str]) -> Iterator[str]:
    """What the user writes, blank lines left out, to the end of input."""
    interrupted = False
    while True:
        try:
            # What is no UTF-8 reaches Python as lone surrogates, which cannot be passed on.
            text = ask("> ").encode(errors="surrogateescape").decode(errors="replace")
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            note("\nCtrl-C again ends the chat.")
            continue
        interrupted = False
        if text.strip():
            yield text


def _obey(command: str, talk: Conversation) -> None:
    if command == "/clear":
        talk.clear()
        note("Forgotten.")
    elif command == "/stats":
        for name, value in talk.stats():
            note(f"{name:<11} {value}")
    else:
        if command != "/help":
            note(f"There is no {command}.")
        note(_HELP)


def _answer(runner: EngineRunner, config: EngineConfig, talk: Conversation, text: str, *, emulated: bool) -> None:
    fitted = talk.next(text, lambda request: runner.prompt_tokens(config, request, time_limit_s=TIME_LIMIT_S))
    if fitted.n_dropped:
        note(f"The context is full: the oldest {fitted.n_dropped} messages were dropped.")
    with _stopped_by_interrupt(runner.stop):
        answer, stats = stream_reply(runner, config, fitted.request)
    talk.answered(text, answer, stats)
    note(figures(stats, emulated=emulated))


@contextmanager
def _stopped_by_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C stops the answer; one more ends the program, also where the engine hangs."""

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
