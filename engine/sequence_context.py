"""One context that holds several sequences, each with room and positions of its own."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp.llama_cpp as llama
import numpy as np

from moetune.engine.config import EngineConfig
from moetune.engine.measurement import FailureReason
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.native_log import NativeLog
from moetune.engine.serving import Sampling

# Of a token's text; the longest of any known vocabulary is a run of 256 spaces.
_PIECE_BYTES = 4096
# What llama.cpp's own programs narrow the choice to above temperature 0, besides top_p.
_TOP_K = 40
_MIN_P = 0.05
_PENALISED_TOKENS = 256


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
        self._piece = ctypes.create_string_buffer(_PIECE_BYTES)

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
        """A token's bytes, which need not be whole characters; none for control tokens."""
        n_bytes = llama.llama_token_to_piece(self._model.vocab, token, self._piece, _PIECE_BYTES, 0, False)
        return self._piece.raw[: max(n_bytes, 0)]

    def ends(self, token: int) -> bool:
        """Whether the model ends its text with this token."""
        return bool(llama.llama_vocab_is_eog(self._model.vocab, token))

    def sampler(self, sampling: Sampling) -> "Sampler":
        """A sequence's own sampler."""
        return Sampler(self._context, sampling, self._model.n_vocab)


class Sampler:
    """Chooses the tokens of one sequence; free it when that ends."""

    def __init__(self, context: int, sampling: Sampling, n_vocab: int) -> None:
        self._context = context
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for link in _links(sampling, n_vocab):
            llama.llama_sampler_chain_add(self._chain, link)

    def choose(self, index: int) -> int:
        """The next token, from the logits of the last batch's token `index`."""
        return int(llama.llama_sampler_sample(self._chain, self._context, index))

    def free(self) -> None:
        """Give its memory back."""
        llama.llama_sampler_free(self._chain)


def _links(sampling: Sampling, n_vocab: int) -> list[int]:
    links = []
    if sampling.presence_penalty or sampling.frequency_penalty:
        penalties = sampling.frequency_penalty, sampling.presence_penalty
        links.append(llama.llama_sampler_init_penalties(n_vocab, _PENALISED_TOKENS, 1.0, *penalties))
    if sampling.temperature <= 0:
        return [*links, llama.llama_sampler_init_greedy()]
    return [
        *links,
        llama.llama_sampler_init_top_k(_TOP_K),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(_MIN_P, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(sampling.seed),
    ]
