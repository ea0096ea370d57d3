"""The engine behind the server: a process that answers many requests at once, and is started anew when it dies."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from queue import SimpleQueue

from moetune.engine import protocol
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Failed
from moetune.engine.process import WorkerProcess
from moetune.engine.runner import EngineRunner
from moetune.engine.serving import Event, Finished, Refusal, Rejected, SequenceRequest, ServingState
from moetune.errors import MoetuneError
from moetune.server.errors import ApiError

_LOG = logging.getLogger("moetune.server")

# The engine speaks every few seconds; only one piece of a prompt may take longer, when experts come from a disk.
_SILENCE_S = 600.0
_LOAD_S = 3600.0
_RETRY_S = (1.0, 60.0)  # first and longest pause before the engine is started again


class Backend:
    """Passes requests to the engine and events back. All but the two pumps belongs to the event loop's thread."""

    def __init__(self, runner: EngineRunner, config: EngineConfig, n_sequences: int, queue: int) -> None:
        self._runner = runner
        self._config = config
        self._n_sequences = n_sequences
        self._most = n_sequences + queue
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[Event]] = {}
        self._outbox: SimpleQueue[protocol.Request | None] = SimpleQueue()
        self._process: WorkerProcess | None = None
        self._closing = threading.Event()
        self._pumps: list[threading.Thread] = []
        self.n_ctx = 0
        self.restarts = 0
        self.cancelled = 0
        self.state: ServingState | None = None

    def start(self) -> None:
        """Load the model. Raises MoetuneError when that fails."""
        self._process, serving = self._runner.serve(self._config, self._n_sequences, time_limit_s=_LOAD_S)
        self.n_ctx = serving.n_ctx

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to pass messages, to and from the event loop's thread."""
        tell = loop.call_soon_threadsafe
        self._pumps = [
            threading.Thread(target=self._receive, args=(tell,), name="from-engine", daemon=True),
            threading.Thread(target=self._send, name="to-engine", daemon=True),
        ]
        for pump in self._pumps:
            pump.start()

    def close(self) -> None:
        """End the engine; whoever still waits for it hears nothing more."""
        self._closing.set()
        self._outbox.put(protocol.Quit())
        self._outbox.put(None)
        for pump in self._pumps:
            pump.join(timeout=15)
        self._runner.close()

    @property
    def up(self) -> bool:
        """Whether the engine is there."""
        return self._process is not None

    @property
    def n_requests(self) -> int:
        """Requests that run or wait."""
        return len(self._replies)

    async def events(self, build: Callable[[int], SequenceRequest]) -> AsyncGenerator[Event, None]:
        """What the engine says about a request, to its end; leaving early cancels it. Raises ApiError(429, 503).

        build: the request, given its id.
        """
        if not self.up:
            raise ApiError(503, "The engine is being started; try again soon.", "engine_unavailable")
        if self.n_requests >= self._most:
            raise ApiError(429, f"{self.n_requests} requests run or wait already; try again soon.", "queue_full")
        request = build(next(self._ids))
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._replies[request.id] = inbox
        self._outbox.put(protocol.Submit(request))
        ended = False
        try:
            while not ended:
                event = await inbox.get()
                ended = isinstance(event, Finished | Rejected)
                yield event
        finally:
            self._replies.pop(request.id, None)
            if not ended:
                self.cancelled += 1
                self._outbox.put(protocol.Cancel(request.id))

    def _heard(self, message: protocol.Said | protocol.State) -> None:
        if isinstance(message, protocol.State):
            self.state = message.state
        elif message.event.id in self._replies:  # else cancelled, and the engine did not know yet
            self._replies[message.event.id].put_nowait(message.event)

    def _lost(self, detail: str) -> None:
        """The engine is gone, and with it all that it was at."""
        _LOG.error("the engine failed and is started again: %s", detail)
        self._process, self.state = None, None
        for request_id, inbox in self._replies.items():
            inbox.put_nowait(Rejected(request_id, Refusal.ENGINE, "the engine failed while it was at this request"))

    def _found(self, process: WorkerProcess) -> None:
        self._process = process
        self.restarts += 1

    def _send(self) -> None:
        """Pump: a pipe that is full must not stop the event loop."""
        while (message := self._outbox.get()) is not None:
            process = self._process
            if process is not None:
                process.send(message)  # that it failed, the other pump hears too

    def _receive(self, tell: Callable[..., object]) -> None:
        """Pump: what the engine says, and when it says nothing more, another engine."""
        process = self._process
        while process is not None:
            message = process.receive(time.monotonic() + _SILENCE_S)
            if self._closing.is_set():
                return
            if isinstance(message, protocol.Said | protocol.State):
                tell(self._heard, message)
                continue
            tell(self._lost, message.detail if isinstance(message, Failed) else f"it answered {message.kind}")
            process = self._start_again()
            if process is not None:
                tell(self._found, process)

    def _start_again(self) -> WorkerProcess | None:
        pause_s, longest_s = _RETRY_S
        while not self._closing.wait(pause_s):
            try:
                return self._runner.serve(self._config, self._n_sequences, time_limit_s=_LOAD_S)[0]
            except MoetuneError as error:
                _LOG.error("the engine did not start: %s", error.cause)
            pause_s = min(2 * pause_s, longest_s)
        return None
