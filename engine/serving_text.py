"""From a sequence's tokens to text that may be sent: whole characters, and nothing that may begin a stop string."""

import codecs
from collections.abc import Sequence


class TextTail:
    """The end of a growing text. What could still turn out to be part of a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, raw: bytes) -> str:
        """Text that is certain now; after a stop string, which is left out, `stopped` is true."""
        return self._release(self._decoder.decode(raw))

    def end(self) -> str:
        """The rest, when nothing more will come."""
        certain = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = ("" if self.stopped else self._held), ""
        return certain + rest

    def _release(self, more: str) -> str:
        text = self._held + more
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` the stop string begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
