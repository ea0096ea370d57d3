"""Runs a GGUF model in unmodified llama.cpp on the CPU and reads what the demo's card and tests need.

Low-level on purpose: no engine, no cache, one context, every token's logits, and the experts the router chose.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

_ROUTED = b"ffn_moe_argsort-"


@dataclass(frozen=True)
class Decoded:
    """``logits`` [tokens, vocab]; ``experts`` by layer: ids [tokens, used], best first."""

    logits: NDArray[np.float32]
    experts: dict[int, NDArray[np.int32]]


class StockModel:
    """A model and one context in llama.cpp. Close it, or use it as a context manager.

    Raises RuntimeError when llama.cpp refuses the file.
    """

    def __init__(self, path: Path | str, context: int = 512, threads: int = 2, observe: bool = True) -> None:
        # llama.cpp logs to standard error unless told otherwise; the callback must outlive every call.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        # The CPU alone: a device that something else in this process loaded would be given large batches.
        nobody = (ctypes.c_void_p * 1)(None)
        parameters.devices = ctypes.addressof(nobody)
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.context = context
        self._seen: dict[int, list[NDArray[np.int32]]] = {}
        self._base = ctypes.CDLL(str(_ggml_library()))
        self._base.ggml_get_name.restype = ctypes.c_char_p
        self._base.ggml_nbytes.restype = ctypes.c_size_t
        self._base.ggml_nrows.restype = ctypes.c_int64
        self._base.ggml_get_name.argtypes = [ctypes.c_void_p]
        self._base.ggml_nbytes.argtypes = [ctypes.c_void_p]
        self._base.ggml_nrows.argtypes = [ctypes.c_void_p]
        self._base.ggml_backend_tensor_get.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
        ]
        self._observer = llama_cpp.ggml_backend_sched_eval_callback(self._observe)
        self._context: Any = self._new_context(threads, observe)
        self.used = int(self.metadata("expert_used_count") or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the context and the model. Safe to call twice."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def metadata(self, key: str) -> str | None:
        """A metadata value as text; the architecture's prefix is added when the key alone is unknown."""
        for full in (key, f"{self._text('general.architecture')}.{key}"):
            value = self._text(full)
            if value is not None:
                return value
        return None

    def tokenise(self, text: str) -> list[int]:
        """Token ids, without special tokens added or parsed."""
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, False)
        return list(tokens[:count])

    def text(self, tokens: Sequence[int]) -> bytes:
        """The bytes behind token ids; control tokens have none."""
        return b"".join(self._piece(token) for token in tokens)

    def decode(self, tokens: Sequence[int]) -> Decoded:
        """Decodes one sequence from an empty context. Raises ValueError on a bad length, RuntimeError on failure."""
        if not 0 < len(tokens) <= self.context:
            raise ValueError(f"between 1 and {self.context} tokens, not {len(tokens)}")
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._seen = {}
        self._submit(tokens, 0, llama_cpp.llama_decode)
        rows = [
            self._row(llama_cpp.llama_get_logits_ith(self._context, i), self.vocab_size) for i in range(len(tokens))
        ]
        experts = {layer: np.concatenate(parts)[:, : self.used] for layer, parts in sorted(self._seen.items())}
        return Decoded(np.stack(rows), experts)

    def encode(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """An encoder's embeddings [tokens, embd]."""
        self._submit(tokens, 0, llama_cpp.llama_encode)
        width = llama_cpp.llama_model_n_embd(self._model)
        rows = [self._row(llama_cpp.llama_get_embeddings_ith(self._context, i), width) for i in range(len(tokens))]
        return np.stack(rows)

    def generate(self, prompt: Sequence[int], count: int, temperature: float = 0.0, seed: int = 0) -> list[int]:
        """``count`` further tokens, greedy at temperature 0; the prompt and they must fit the context."""
        rng = np.random.default_rng(seed)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._submit(prompt, 0, llama_cpp.llama_decode)
        position, made = len(prompt), list[int]()
        row = self._row(llama_cpp.llama_get_logits_ith(self._context, len(prompt) - 1), self.vocab_size)
        while len(made) < count:
            noise = rng.gumbel(size=row.shape) * temperature
            made.append(int(np.argmax(row + noise)))
            self._submit(made[-1:], position, llama_cpp.llama_decode)
            position += 1
            row = self._row(llama_cpp.llama_get_logits_ith(self._context, 0), self.vocab_size)
        return made

    def _new_context(self, threads: int, observe: bool) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.context
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = self._is_encoder()
        if observe:
            parameters.cb_eval = self._observer
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError("llama.cpp makes no context for this model")
        return context

    def _is_encoder(self) -> bool:
        return self.metadata("attention.causal") == "false"

    def _submit(self, tokens: Sequence[int], position: int, run: Any) -> None:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position + i, 1, 1
            batch.seq_id[i][0] = 0
        status = run(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp fails with status {status}")

    def _observe(self, tensor: int, ask: bool, data: object) -> bool:
        name = self._base.ggml_get_name(tensor)
        if not name.startswith(_ROUTED):
            return not ask
        if not ask:
            ids = np.empty(self._base.ggml_nbytes(tensor) // 4, np.int32)
            self._base.ggml_backend_tensor_get(tensor, ids.ctypes.data, 0, ids.nbytes)
            layer = int(name[len(_ROUTED) :])
            self._seen.setdefault(layer, []).append(ids.reshape(self._base.ggml_nrows(tensor), -1))
        return True

    def _row(self, pointer: Any, width: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(pointer, (width,)).copy()

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(0, length)]

    def _text(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(4096)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None


def bits_per_byte(model: StockModel, tokens: Sequence[int], window: int = 256) -> float:
    """Mean code length of the text behind the tokens, in windows of ``window`` that start from nothing."""
    nats, size = 0.0, 0
    for start in range(0, len(tokens) - window, window):
        inputs, targets = tokens[start : start + window], tokens[start + 1 : start + window + 1]
        logits = model.decode(inputs).logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nats -= float(logs[np.arange(len(targets)), targets].sum())
        size += len(model.text(targets))
    return nats / math.log(2) / size


def top_share(experts: NDArray[np.int32], count: int, total: int) -> float:
    """Part of all activations that the ``count`` most used of ``total`` experts take."""
    uses = np.sort(np.bincount(experts.ravel(), minlength=total))[::-1]
    return float(uses[:count].sum() / uses.sum())


def lru_hit_rate(experts: NDArray[np.int32], slots: int) -> float:
    """Part of activations that find their expert among the ``slots`` most recently used ones, token by token."""
    recent: dict[int, None] = {}
    hits = 0
    for expert in experts.ravel().tolist():
        if expert in recent:
            hits += 1
            del recent[expert]
        elif len(recent) >= slots:
            del recent[next(iter(recent))]
        recent[expert] = None
    return hits / experts.size


def _ggml_library() -> Path:
    folder = Path(llama_cpp.__file__).parent / "lib"
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no libggml-base in {folder}")
