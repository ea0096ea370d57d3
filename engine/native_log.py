"""llama.cpp's log, kept instead of printed: the last lines explain a failure."""

import ctypes
import io
import logging
from collections import deque
from functools import cache
from typing import TextIO

import llama_cpp.llama_cpp as llama

from moetune.engine.measurement import FailureReason

_WARN_LEVEL = 3  # enum ggml_log_level: debug 1, info 2, warn 3, error 4, continuation of the last line 5
_ERROR_LEVEL = 4
_CONTINUED_LEVEL = 5

# What ggml backends and llama.cpp say when an allocation is refused.
_MEMORY_WORDS = ("failed to allocate", "out of memory", "unable to allocate", "alloc_tensor_range", "cannot allocate")


# Every line, of this process and of engine processes, at level DEBUG: for whoever wants to see them.
LINES = logging.getLogger("moetune.engine")


class _Lines(io.TextIOBase):
    """A sink that passes whole lines on to `LINES`."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            LINES.debug("%s", line)
        return len(text)


@cache
def silence() -> "NativeLog":
    """Keep llama.cpp quiet in this process from now on; what it says goes to `LINES`."""
    return NativeLog(_Lines())


class NativeLog:
    """Receives every line llama.cpp and ggml log in this process; writes all of them to `sink`."""

    def __init__(self, sink: TextIO | io.TextIOBase) -> None:
        self._sink = sink
        self._trouble: deque[str] = deque(maxlen=40)
        self._last_level = 0

        @llama.llama_log_callback  # type: ignore[untyped-decorator]
        def receive(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
            self._receive(level, text.decode(errors="replace"))

        self._callback = receive  # ctypes keeps no reference of its own
        llama.llama_log_set(receive, ctypes.c_void_p(0))

    def _receive(self, level: int, text: str) -> None:
        self._sink.write(text)
        if level != _CONTINUED_LEVEL:
            self._last_level = level
        if self._last_level in (_WARN_LEVEL, _ERROR_LEVEL) and text.strip(" .\n"):
            self._trouble.append(text.strip())

    def clear(self) -> None:
        """Forget earlier trouble; what follows belongs to the next call."""
        self._trouble.clear()

    def failure(self, otherwise: FailureReason) -> FailureReason:
        """OUT_OF_MEMORY when the lines since `clear` speak of refused memory."""
        said = "\n".join(self._trouble).lower()
        return FailureReason.OUT_OF_MEMORY if any(words in said for words in _MEMORY_WORDS) else otherwise

    def last_words(self) -> str:
        """The lines that tell most, at most two."""
        return " ".join(list(self._trouble)[-2:]) or "llama.cpp gave no reason"
