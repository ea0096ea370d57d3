"""What is asked of an engine that serves several requests at once, and what it says about each of them."""

from dataclasses import dataclass
from enum import StrEnum

from moetune.engine.generation import ChatMessage, Sampling
from moetune.engine.measurement import CacheCounters


@dataclass(frozen=True)
class SequenceRequest:
    """One text to continue: raw text, or messages that go into the model's chat template.

    max_tokens: None for as many as the context has room for. stop: the text ends before the first of these.
    """

    id: int
    prompt: str | tuple[ChatMessage, ...]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()


class Refusal(StrEnum):
    """Why a request was not begun, or not ended well."""

    TOO_LONG = "too long"
    BAD_PROMPT = "bad prompt"
    ENGINE = "engine"


class Finish(StrEnum):
    """Why a text ends: by the model or a stop string; at the limit of tokens or context."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Accepted:
    """The request's prompt has so many tokens and fits; it is begun as soon as a sequence is free."""

    id: int
    n_prompt: int


@dataclass(frozen=True)
class Piece:
    """Text as it is produced; never empty."""

    id: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The last word on a request that went well. n_kept: tokens of its prompt that still lay in the KV cache."""

    id: int
    finish: Finish
    n_prompt: int
    n_kept: int
    n_reply: int


@dataclass(frozen=True)
class Rejected:
    """The last word on a request that did not; the other requests go on."""

    id: int
    refusal: Refusal
    detail: str


Event = Accepted | Piece | Finished | Rejected


@dataclass(frozen=True)
class ServingState:
    """What the engine is at, and sums since it began to serve.

    kv_cells: positions there is room for, of all sequences together; kv_cells_used: of these, by running requests;
    kv_cells_kept: by ended ones whose beginning may come again. prompt_tokens: computed, without those kept.
    slots: expert slots of all layers.
    """

    n_running: int
    n_waiting: int
    kv_cells: int
    kv_cells_used: int
    kv_cells_kept: int
    prompt_tokens: int
    reply_tokens: int
    slots: int
    counters: CacheCounters | None
