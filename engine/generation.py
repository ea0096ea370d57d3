"""What text generation yields."""

from dataclasses import dataclass

from moetune.engine.measurement import CacheCounters


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt. chat: wrap it in the model's own chat template. temperature 0 is greedy."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False


@dataclass(frozen=True)
class TextChunk:
    """Text as it is produced; may be empty while a multi-byte character is incomplete."""

    text: str


@dataclass(frozen=True)
class GenerationStats:
    """The last item of a generation. stopped: "end" (the model ended), "limit" (max_tokens or context reached)."""

    n_prompt: int
    prompt_s: float
    n_reply: int
    reply_s: float
    stopped: str
    counters: CacheCounters | None
