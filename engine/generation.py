"""What text generation is asked, and what it yields."""

from dataclasses import dataclass

from moetune.engine.measurement import CacheCounters


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation; `role` is a name that the model's own chat template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy: the seed and top_p then change nothing.

    presence_penalty, frequency_penalty: taken off the logits of tokens that have come before, once and each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt.

    chat: put it, after `history`, into the model's own chat template; else all texts follow one another as they are.
    """

    prompt: str
    max_tokens: int
    sampling: Sampling = Sampling()
    chat: bool = False
    history: tuple[ChatMessage, ...] = ()


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
