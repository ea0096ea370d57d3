"""A model and a context in this process, on llama-cpp-python's low-level API. Owned by one worker."""

import codecs
import ctypes
import time
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from moetune.engine.activity import Flow, KvRow
from moetune.engine.chat_template import ChatTemplate, TemplateError
from moetune.engine.config import EngineConfig, FlashAttention, KvType, LoadMode, SplitMode
from moetune.engine.generation import ChatMessage, GenerationRequest
from moetune.engine.library import device_handle, ggml
from moetune.engine.measurement import Failed, FailureReason
from moetune.engine.native_log import NativeLog
from moetune.engine.prefix import known_prefix
from moetune.engine.sampler import Sampler

# Where llama.cpp's own -ncmoe finds a layer's routed experts.
_EXPERTS_OF_LAYER = r"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps"

_GGML_TYPE = {
    KvType.F32: 0,
    KvType.F16: 1,
    KvType.Q4_0: 2,
    KvType.Q4_1: 3,
    KvType.Q5_0: 6,
    KvType.Q5_1: 7,
    KvType.Q8_0: 8,
    KvType.IQ4_NL: 20,
    KvType.BF16: 30,
}

_FLASH_ATTENTION = {
    FlashAttention.AUTO: llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    FlashAttention.ON: llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    FlashAttention.OFF: llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_LOAD_MODE = {
    LoadMode.MMAP: llama.LLAMA_LOAD_MODE_MMAP,
    LoadMode.NONE: llama.LLAMA_LOAD_MODE_NONE,
    LoadMode.MLOCK: llama.LLAMA_LOAD_MODE_MLOCK,
    LoadMode.MMAP_MLOCK: llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
    LoadMode.DIO: llama.LLAMA_LOAD_MODE_DIRECT_IO,
}
_SPLIT_MODE = {SplitMode.LAYER: llama.LLAMA_SPLIT_MODE_LAYER, SplitMode.ROW: llama.LLAMA_SPLIT_MODE_ROW}

BATCH_TOKENS = 2048
# Of a token's text; the longest of any known vocabulary is a run of 256 spaces.
_PIECE_BYTES = 4096


class EngineFailure(Exception):
    """The engine could not do what was asked; becomes a `Failed` on the wire. Never leaves the worker process."""

    def __init__(self, reason: FailureReason, detail: str) -> None:
        super().__init__(detail)
        self.failed = Failed(reason, detail)


class _BufferOverride(ctypes.Structure):
    """`llama_model_tensor_buft_override`: a regular expression over tensor names and where those tensors go."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


class ModelHandle:
    """One loaded model; at most one context at a time. Close it before another is opened on the same device."""

    def __init__(self, path: Path, log: NativeLog, config: EngineConfig | None) -> None:
        """Load `path` as `config` places it; config None loads the vocabulary only. Raises EngineFailure."""
        self._log = log
        self._context: int | None = None
        self._held: list[int] = []
        self._n_computed = self._n_reply = 0
        self._piece = ctypes.create_string_buffer(_PIECE_BYTES)
        self.n_ctx = 0
        params = llama.llama_model_default_params()
        params.vocab_only = config is None
        self._pointed_at: list[object] = []
        if config is not None:
            _place(params, config, self._pointed_at)
        log.clear()
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise EngineFailure(log.failure(FailureReason.LOAD_FAILED), log.last_words())
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.n_vocab = llama.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the context and the model."""
        self.close_context()
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None

    def open_context(self, config: EngineConfig, observer: object = None, n_sequences: int = 1) -> None:
        """Replace the context by one with this configuration's size, types and threads. Raises EngineFailure.

        observer: llama.cpp's `cb_eval`, as ctypes callback; it must live as long as the context.
        n_sequences: so many texts at once, each in a part of the KV cache as large as the configuration's.
        """
        self.close_context()
        params = llama.llama_context_default_params()
        params.n_ctx = config.n_ctx * n_sequences
        params.n_seq_max = n_sequences
        params.n_batch = min(config.n_ctx, BATCH_TOKENS)
        params.n_ubatch = min(config.n_ubatch, params.n_batch)
        params.type_k, params.type_v = _GGML_TYPE[config.type_k], _GGML_TYPE[config.type_v]
        params.n_threads, params.n_threads_batch = config.n_threads, config.batch_threads
        params.flash_attn_type = _FLASH_ATTENTION[config.flash_attn]
        params.offload_kqv = config.gpu_layers > 0
        if observer is not None:
            params.cb_eval = observer
        self._log.clear()
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise EngineFailure(self._log.failure(FailureReason.CONTEXT_FAILED), self._log.last_words())
        self._context = context
        self._held = []
        self._memory = llama.llama_get_memory(context)
        self._n_batch = params.n_batch
        self.n_ctx = llama.llama_n_ctx(context)

    def close_context(self) -> None:
        """Free the context, if there is one."""
        if self._context is not None:
            llama.llama_free(self._context)
            self._context = None

    @property
    def context(self) -> int:
        """llama.cpp's open context. Raises EngineFailure when there is none."""
        if self._context is None:
            raise EngineFailure(FailureReason.REFUSED, "no context is open")
        return self._context

    @property
    def vocab(self) -> int:
        """llama.cpp's vocabulary of this model."""
        vocab: int = self._vocab
        return vocab

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Change the thread counts of the open context, for single tokens and for batches."""
        llama.llama_set_n_threads(self._context, n_threads, n_threads_batch)

    @property
    def threads(self) -> tuple[int, int]:
        """What the open context computes single tokens and batches with."""
        return llama.llama_n_threads(self._context), llama.llama_n_threads_batch(self._context)

    def clear(self) -> None:
        """Empty the KV cache."""
        llama.llama_memory_clear(self._memory, True)
        self._held = []

    def forget_from(self, position: int) -> bool:
        """Drop the KV cache from `position` on; False when this model's memory cannot be cut (recurrent layers)."""
        if not llama.llama_memory_seq_rm(self._memory, 0, position, -1):
            return False
        del self._held[position:]
        return True

    def flow(self, *, running: bool) -> Flow:
        """What went through so far, and what the KV cache holds; safe from another thread."""
        rows = (KvRow(min(len(self._held), self.n_ctx), self.n_ctx, running),) if self.n_ctx else ()
        return Flow(self._n_computed - self._n_reply, self._n_reply, rows)

    def keep_beginning(self, tokens: Sequence[int]) -> int:
        """Leave in the KV cache what `tokens` begin with, all but the last at most; how many need not be computed."""
        kept = known_prefix(self._held, tokens)
        # A memory that has lost its first positions (a window that slid) cannot go back to what it was then.
        is_whole = llama.llama_memory_seq_pos_min(self._memory, 0) == 0
        if kept == len(self._held) or (kept and is_whole and self.forget_from(kept)):
            return kept
        self.clear()
        return 0

    def decode(self, tokens: Sequence[int], *, every_output: bool = False) -> None:
        """Append tokens to sequence 0, logits for the last one, and wait for the result. Raises EngineFailure.

        every_output: logits for all of them; without that the last layer's FFN sees only the last token.
        """
        for start in range(0, len(tokens), self._n_batch):
            chunk = tokens[start : start + self._n_batch]
            self._decode_batch(chunk, len(chunk) if every_output else None)
        llama.llama_synchronize(self._context)

    def decode_logits(self, tokens: Sequence[int], n_last: int) -> NDArray[np.float32]:
        """Append tokens to sequence 0; the logits [n_last, n_vocab] after the last `n_last`. Raises EngineFailure."""
        logits = np.empty((n_last, self.n_vocab), np.float32)
        n_before, n_filled = len(tokens) - n_last, 0
        for start in range(0, len(tokens), self._n_batch):
            chunk = tokens[start : start + self._n_batch]
            n_outputs = max(0, start + len(chunk) - max(start, n_before))
            self._decode_batch(chunk, n_outputs)
            if n_outputs:
                rows = np.ctypeslib.as_array(llama.llama_get_logits(self._context), shape=(n_outputs, self.n_vocab))
                logits[n_filled : n_filled + n_outputs] = rows
                n_filled += n_outputs
        return logits

    def _decode_batch(self, chunk: Sequence[int], n_outputs: int | None) -> None:
        """Queue one batch. n_outputs: logits for the last so many tokens, None as llama.cpp does it: for the last."""
        array = (llama.llama_token * len(chunk))(*chunk)
        batch = llama.llama_batch_get_one(array, len(chunk))
        if n_outputs is not None:
            batch.logits = (ctypes.c_int8 * len(chunk))(*[0] * (len(chunk) - n_outputs), *[1] * n_outputs)
        self._log.clear()
        status = llama.llama_decode(self._context, batch)
        if status != 0:
            reason = self._log.failure(FailureReason.DECODE_FAILED)
            raise EngineFailure(reason, f"llama_decode returned {status}. {self._log.last_words()}")
        self._held += chunk
        self._n_computed += len(chunk)

    def timed_decode(self, tokens: Sequence[int]) -> float:
        """Seconds `decode` takes."""
        start = time.perf_counter()
        self.decode(tokens)
        return time.perf_counter() - start

    def require_finite_logits(self) -> None:
        """Raise EngineFailure when the last token's logits are not numbers: the weights are damaged."""
        pointer = llama.llama_get_logits_ith(self._context, -1)
        if not np.isfinite(np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))).all():
            detail = "the model's output is not a number: its file is damaged, or its type of quantisation is broken"
            raise EngineFailure(FailureReason.DECODE_FAILED, detail)

    @property
    def first_tokens(self) -> list[int]:
        """What the model wants at the beginning of every text: BOS or nothing."""
        return [llama.llama_vocab_bos(self._vocab)] if llama.llama_vocab_get_add_bos(self._vocab) else []

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of `text`; `special` adds BOS where the model wants it and reads control tokens."""
        raw = text.encode()
        room = len(raw) + 16
        array = (llama.llama_token * room)()
        n = llama.llama_tokenize(self._vocab, raw, len(raw), array, room, special, special)
        if n < 0:
            raise EngineFailure(FailureReason.DECODE_FAILED, f"text needs {-n} tokens, {room} were expected at most")
        return list(array[:n])

    def text_of(self, token: int) -> bytes:
        """A token's bytes, which need not be whole characters; none for control tokens."""
        n_bytes = llama.llama_token_to_piece(self._vocab, token, self._piece, _PIECE_BYTES, 0, False)
        return self._piece.raw[: max(n_bytes, 0)]

    def ends(self, token: int) -> bool:
        """Whether the model ends its text with this token."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def prompt_tokens(self, request: GenerationRequest) -> list[int]:
        """What is computed before the reply begins. Raises EngineFailure for a template that is missing or fails."""
        messages = (*request.history, ChatMessage("user", request.prompt))
        if not request.chat:
            return self.tokenize("".join(message.content for message in messages), special=True)
        try:
            return self.chat_tokens(messages)
        except TemplateError as error:
            raise EngineFailure(FailureReason.REFUSED, f"{error}; use raw text (--raw)") from error

    def stream(self, request: GenerationRequest, unwanted: Callable[[], bool]) -> Generator[str, None, tuple[int, str]]:
        """Sampled text after what has been decoded; ends at the model's own end, the request's limit, or when unwanted.

        The generator's return value is (tokens generated, what `GenerationStats.stopped` says).
        """
        sampler = Sampler(self.context, request.sampling, self.n_vocab)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        n_reply, stopped = 0, "limit"
        try:
            while n_reply < request.max_tokens and len(self._held) < self.n_ctx:
                if unwanted():
                    stopped = "asked"
                    break
                token = sampler.choose()
                if self.ends(token):
                    stopped = "end"
                    break
                n_reply += 1
                yield decoder.decode(self.text_of(token))
                self.decode([token])
                self._n_reply += 1
            yield decoder.decode(b"", final=True)
        finally:
            sampler.free()
        return n_reply, stopped

    def chat_tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        """A conversation in the model's own template, to where the reply begins. Raises TemplateError."""
        tokens = self.tokenize(self._chat_template.render(messages), special=True)
        # Many templates begin with the token that is also added to every text.
        return tokens[1:] if tokens[:2] == self.first_tokens * 2 else tokens

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        source = llama.llama_model_chat_template(self._model, None)
        if not source:
            raise TemplateError("this model has no chat template")

        def special(token: int) -> str:
            return llama.llama_vocab_get_text(self._vocab, token).decode(errors="replace") if token >= 0 else ""

        return ChatTemplate(
            source.decode(errors="replace"),
            bos=special(llama.llama_vocab_bos(self._vocab)),
            eos=special(llama.llama_vocab_eos(self._vocab)),
        )


def _place(params: llama.llama_model_params, config: EngineConfig, keep_alive: list[object]) -> None:
    """Translate a placement into llama.cpp's model parameters. `keep_alive` owns what `params` points at."""
    on_device = config.device not in (None, "CPU")
    names = [str(config.device), *config.more_devices] if on_device else []
    devices = (ctypes.c_void_p * (len(names) + 1))(*(_handle_of(name) for name in names), None)
    params.devices = ctypes.addressof(devices)  # type: ignore[assignment]  # a c_void_p field
    params.n_gpu_layers = config.gpu_layers if on_device else 0
    params.split_mode = _SPLIT_MODE[config.split_mode]
    params.load_mode = _LOAD_MODE[config.load_mode]
    params.use_extra_bufts = config.repack
    params.no_host = config.no_host
    keep_alive.append(devices)
    if on_device and config.tensor_split:
        shares = (ctypes.c_float * llama.llama_max_devices())(*config.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))  # type: ignore[assignment]
        keep_alive.append(shares)
    if not on_device or config.ram_expert_layers == 0:
        return
    cpu = ggml().ggml_backend_cpu_buffer_type()
    patterns = [_EXPERTS_OF_LAYER.format(layer=i) for i in range(config.ram_expert_layers)]
    overrides = (_BufferOverride * (len(patterns) + 1))(*(_BufferOverride(p.encode(), cpu) for p in patterns))
    params.tensor_buft_overrides = ctypes.addressof(overrides)  # type: ignore[assignment]
    keep_alive.append(overrides)


def _handle_of(name: str) -> int:
    handle = device_handle(name)
    if handle is None:
        raise EngineFailure(FailureReason.REFUSED, f"no ggml device {name}")
    return handle
