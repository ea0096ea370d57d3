"""What text generation is asked, and what it yields."""

from dataclasses import dataclass
from enum import StrEnum

from moetune.engine.measurement import CacheCounters


class Role(StrEnum):
    """Who said something, by the names chat templates use."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """What one side of a conversation said."""

    role: Role
    text: str


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt. temperature 0 is greedy.

    chat: put it, after `history`, into the model's own chat template; else all texts follow one another as they are.
    """

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False
    history: tuple[Message, ...] = ()


@dataclass(frozen=True)
class TextChunk:
    """Text as it is produced; may be empty while a multi-byte character is incomplete."""

    text: str


@dataclass(frozen=True)
class GenerationStats:
    """The last item of a generation. n_prompt: tokens computed; n_kept: those before them, known from the last one.

    stopped: "end" (the model ended), "limit" (max_tokens or context reached), "asked" (by whoever wanted the text).
    """

    n_prompt: int
    prompt_s: float
    n_reply: int
    reply_s: float
    stopped: str
    counters: CacheCounters | None
    n_kept: int = 0
