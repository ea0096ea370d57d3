"""Serves several requests at once: every step gives each running text a token, and one waiting prompt a piece."""

import time
from collections import deque
from collections.abc import Callable

from moetune.engine import library, protocol
from moetune.engine.activity import Flow, KvRow
from moetune.engine.chat_template import TemplateError
from moetune.engine.generation import ChatMessage
from moetune.engine.measurement import Failed, FailureReason
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.prefix import known_prefix
from moetune.engine.sequence_context import SequenceContext
from moetune.engine.serving import (
    Accepted,
    Event,
    Finished,
    Piece,
    Refusal,
    Rejected,
    SequenceRequest,
    ServingState,
)
from moetune.engine.serving_sequence import Sequence

# How often the parent hears of the state: it takes a longer silence for a hang.
_STATE_S = 0.5
_IDLE_STATE_S = 5.0

Take = Callable[[float], protocol.Request | None]


class ServingLoop:
    """Owns the context's rows. A row is running a sequence, or free and perhaps holding the beginning of its last one.

    layers: the cache's, as `HotCache.layers`. send: passes events and states to the parent.
    """

    def __init__(
        self,
        model: ModelHandle,
        context: SequenceContext,
        layers: Callable[[], list[library.LayerState]],
        send: Callable[[protocol.Response], None],
    ) -> None:
        self._model = model
        self._context = context
        self._layers = layers
        self._send = send
        self._waiting: deque[tuple[SequenceRequest, list[int]]] = deque()
        self._running: dict[int, Sequence] = {}  # by row
        self._held: list[list[int]] = [[] for _ in range(context.n_rows)]  # what free rows begin with
        self._n_prompt = self._n_reply = 0
        self._kv: tuple[KvRow, ...] = ()
        self._state_at = 0.0

    def run(self, take: Take) -> None:
        """Serve until `Quit`. `take` waits so many seconds for the parent's next request."""
        while True:
            request = take(0.0 if self._busy else _IDLE_STATE_S)
            while request is not None:
                if isinstance(request, protocol.Quit):
                    return
                self._hear(request)
                request = take(0.0)
            self._admit()
            self._generate()
            self._read_prompt()
            self._tell_state()

    def flow(self) -> Flow:
        """What went through since it began to serve, and what each row held of late; safe from another thread."""
        return Flow(self._n_prompt, self._n_reply, self._kv)

    @property
    def _busy(self) -> bool:
        return bool(self._running or self._waiting)

    def _say(self, event: Event) -> None:
        self._send(protocol.Said(event))

    def _hear(self, request: protocol.Request) -> None:
        match request:
            case protocol.Submit():
                self._submit(request.request)
            case protocol.Cancel():
                self._cancel(request.id)
            case _:
                refused = Failed(FailureReason.REFUSED, f"an engine that serves does not {request.kind}")
                self._send(protocol.Refused(refused))

    def _submit(self, request: SequenceRequest) -> None:
        try:
            tokens = self._tokens(request.prompt)
        except (TemplateError, EngineFailure) as error:
            self._say(Rejected(request.id, Refusal.BAD_PROMPT, str(error)))
            return
        if not tokens:
            self._say(Rejected(request.id, Refusal.BAD_PROMPT, "the prompt has no tokens"))
        elif len(tokens) >= self._context.n_ctx:
            detail = f"the prompt has {len(tokens)} tokens, and the context has room for {self._context.n_ctx}"
            self._say(Rejected(request.id, Refusal.TOO_LONG, detail))
        else:
            self._say(Accepted(request.id, len(tokens)))
            self._waiting.append((request, tokens))

    def _tokens(self, prompt: str | tuple[ChatMessage, ...]) -> list[int]:
        if isinstance(prompt, str):
            return self._model.tokenize(prompt, special=True)
        return self._model.chat_tokens(prompt)

    def _cancel(self, request_id: int) -> None:
        """Forget a request, if it still runs or waits; nothing more is said about it."""
        self._waiting = deque((request, tokens) for request, tokens in self._waiting if request.id != request_id)
        for sequence in [running for running in self._running.values() if running.id == request_id]:
            self._free(sequence)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._context.n_rows:
            request, tokens = self._waiting.popleft()
            free = [row for row in range(self._context.n_rows) if row not in self._running]
            # The most that can be kept, at the least loss to others; low rows, for llama.cpp batches neighbours only.
            row = min(free, key=lambda row: (-self._keepable(row, tokens), len(self._held[row]), row))
            n_kept = self._keepable(row, tokens)
            if not self._context.keep(row, n_kept):
                n_kept = 0
            self._running[row] = Sequence(request, tokens, self._context, row, n_kept)

    def _keepable(self, row: int, tokens: list[int]) -> int:
        """Tokens, in whole pieces, that a free row holds already."""
        alike = known_prefix(self._held[row], tokens)
        return alike - alike % self._context.n_batch

    def _generate(self) -> None:
        """One token for every text that has been begun."""
        writing = [self._running[row] for row in sorted(self._running) if not self._running[row].is_reading]
        if not writing:
            return
        try:
            self._context.write([sequence.next_token() for sequence in writing])
        except EngineFailure as failure:
            for sequence in writing:
                self._fail(sequence, failure)
            return
        for index, sequence in enumerate(writing):
            self._advance(sequence, index)

    def _read_prompt(self) -> None:
        """One piece of the prompt that has waited longest."""
        reading = next((sequence for sequence in self._running.values() if sequence.is_reading), None)
        if reading is None:
            return
        piece = reading.next_piece()
        try:
            self._context.read(piece)
        except EngineFailure as failure:
            self._fail(reading, failure)
            return
        self._n_prompt += len(piece)
        reading.has_read(len(piece))
        if not reading.is_reading:
            self._advance(reading, len(piece) - 1)

    def _advance(self, sequence: Sequence, index: int) -> None:
        n_before = sequence.n_reply
        try:
            text = sequence.advance(index)
        except EngineFailure as failure:
            self._fail(sequence, failure)
            return
        self._n_reply += sequence.n_reply - n_before
        if text:
            self._say(Piece(sequence.id, text))
        if sequence.finish is not None:
            self._free(sequence)
            n_prompt = len(sequence.prompt)
            self._say(Finished(sequence.id, sequence.finish, n_prompt, sequence.n_kept, sequence.n_reply))

    def _fail(self, sequence: Sequence, failure: EngineFailure) -> None:
        self._free(sequence)
        self._context.keep(sequence.row, 0)
        self._held[sequence.row] = []
        self._say(Rejected(sequence.id, Refusal.ENGINE, str(failure)))

    def _free(self, sequence: Sequence) -> None:
        """Give the row back; of its cells stay the prompt's whole pieces, which the next one may begin with."""
        sequence.free()
        del self._running[sequence.row]
        n_whole = sequence.n_read - sequence.n_read % self._context.n_batch
        kept = self._context.keep(sequence.row, n_whole)
        self._held[sequence.row] = sequence.prompt[:n_whole] if kept else []

    def _tell_state(self) -> None:
        now = time.monotonic()
        if now - self._state_at < (_STATE_S if self._busy else 0.0):
            return
        self._state_at = now
        layers, context, running = self._layers(), self._context, self._running
        self._kv = tuple(KvRow(context.cells(row), context.n_ctx, row in running) for row in range(context.n_rows))
        used = sum(row.cells for row in self._kv if row.running)
        state = ServingState(
            n_running=len(self._running),
            n_waiting=len(self._waiting),
            kv_cells=sum(row.room for row in self._kv),
            kv_cells_used=used,
            kv_cells_kept=sum(row.cells for row in self._kv) - used,
            prompt_tokens=self._n_prompt,
            reply_tokens=self._n_reply,
            slots=sum(layer.n_slots for layer in layers),
            counters=library.total(layers),
        )
        self._send(protocol.State(state))
