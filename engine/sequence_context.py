"""One context that holds several sequences, each with room and positions of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp.llama_cpp as llama
import numpy as np

from moetune.engine.config import EngineConfig
from moetune.engine.generation import Sampling
from moetune.engine.measurement import FailureReason
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.native_log import NativeLog
from moetune.engine.sampler import Sampler


@dataclass(frozen=True)
class RowToken:
    """One token of a batch: which sequence it belongs to, where it stands there, and whether logits are wanted."""

    row: int
    token: int
    position: int
    output: bool


class SequenceContext:
    """`n_rows` sequences over one loaded model. A sequence's results do not depend on where others' cells lie."""

    def __init__(self, model: ModelHandle, config: EngineConfig, n_rows: int, log: NativeLog) -> None:
        """Replaces the model's open context; every sequence has `config.n_ctx` positions. Raises EngineFailure."""
        model.open_context(config, n_sequences=n_rows)
        self._log = log
        self._model = model
        self._config = config
        self._context = model.context
        self._memory = llama.llama_get_memory(self._context)
        self.n_rows = n_rows
        self.n_ctx: int = llama.llama_n_ctx_seq(self._context)
        self.n_batch: int = llama.llama_n_ubatch(self._context)
        self._batch = llama.llama_batch_init(max(self.n_batch, n_rows), 0, 1)

    def close(self) -> None:
        """Free the batch; the context is the model's."""
        llama.llama_batch_free(self._batch)

    def read(self, piece: Sequence[RowToken]) -> None:
        """Compute a part of one sequence's prompt, at most a micro-batch. Raises EngineFailure."""
        self._decode(piece, self._config.batch_threads)

    def write(self, tokens: Sequence[RowToken]) -> None:
        """Compute one token of each of several sequences, in the order of their rows. Raises EngineFailure.

        llama.cpp would use the threads of prompts for that; but it is bound by memory as decoding is.
        """
        self._decode(tokens, self._config.n_threads)

    def _decode(self, tokens: Sequence[RowToken], n_threads: int) -> None:
        self._model.set_threads(n_threads, n_threads)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token.token, token.position, token.output
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = token.row
        self._log.clear()
        status = llama.llama_decode(self._context, batch)
        if status != 0:
            reason = self._log.failure(FailureReason.DECODE_FAILED)
            raise EngineFailure(reason, f"llama_decode returned {status}. {self._log.last_words()}")

    def require_finite(self, index: int) -> None:
        """Raise EngineFailure when the logits of the batch's token `index` are not numbers."""
        logits = llama.llama_get_logits_ith(self._context, index)
        if not np.isfinite(np.ctypeslib.as_array(logits, shape=(self._model.n_vocab,))).all():
            raise EngineFailure(FailureReason.DECODE_FAILED, "the model's output is not a number")

    def keep(self, row: int, n_tokens: int) -> bool:
        """Drop a sequence's cells from position `n_tokens` on; all of them, and False, where that cannot be.

        A recurrent state cannot go back, and a window that has slid has lost what the kept tokens attended to.
        """
        is_whole = n_tokens > 0 and llama.llama_memory_seq_pos_min(self._memory, row) == 0
        if is_whole and llama.llama_memory_seq_rm(self._memory, row, n_tokens, -1):
            return True
        llama.llama_memory_seq_rm(self._memory, row, -1, -1)
        return False

    def cells(self, row: int) -> int:
        """Positions a sequence holds."""
        last = llama.llama_memory_seq_pos_max(self._memory, row)
        return last - llama.llama_memory_seq_pos_min(self._memory, row) + 1 if last >= 0 else 0

    def text_of(self, token: int) -> bytes:
        """See `ModelHandle`."""
        return self._model.text_of(token)

    def ends(self, token: int) -> bool:
        """See `ModelHandle`."""
        return self._model.ends(token)

    def sampler(self, sampling: Sampling) -> Sampler:
        """A sequence's own sampler."""
        return Sampler(self._context, sampling, self._model.n_vocab)
