"""OpenAI's response bodies, whole and in pieces."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from moetune.engine.serving import Finished


@dataclass(frozen=True)
class Reply:
    """What all bodies about one request share. chat: the shape of `/v1/chat/completions`, else `/v1/completions`."""

    model: str
    chat: bool
    usage_wanted: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": str(end.finish)}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage(end)}

    def opening(self) -> bytes | None:
        """The first event of a stream: who speaks; completions have none."""
        return self._piece({"role": "assistant", "content": ""}, None) if self.chat else None

    def piece(self, text: str) -> bytes:
        """An event with text."""
        return self._piece({"content": text} if self.chat else text, None)

    def ending(self, end: Finished) -> bytes:
        """The last events of a stream."""
        last = self._piece({} if self.chat else "", str(end.finish))
        if self.usage_wanted:
            last += event({**self._head(self._piece_kind), "choices": [], "usage": usage(end)})
        return last + b"data: [DONE]\n\n"

    @property
    def _piece_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _piece(self, said: object, finish: str | None) -> bytes:
        choice = {"index": 0, "delta" if self.chat else "text": said, "logprobs": None, "finish_reason": finish}
        usage_field = {"usage": None} if self.usage_wanted else {}
        return event({**self._head(self._piece_kind), "choices": [choice], **usage_field})


def usage(end: Finished) -> dict[str, Any]:
    """Tokens of a request; those whose KV cells were kept count as cached, as OpenAI calls it."""
    return {
        "prompt_tokens": end.n_prompt,
        "completion_tokens": end.n_reply,
        "total_tokens": end.n_prompt + end.n_reply,
        "prompt_tokens_details": {"cached_tokens": end.n_kept},
    }


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
