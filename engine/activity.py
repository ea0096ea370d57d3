"""What a running engine does at one moment: the data that `moetune monitor` shows, and its form on the wire."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, with_config

LONGEST_LINE = 8 << 20
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Name = Annotated[str, StringConstraints(max_length=200)]
Heat = Annotated[float, Field(ge=0, le=1e12)]


@with_config(_STRICT)
@dataclass(frozen=True)
class LayerActivity:
    """One layer's cache since its counters were last reset. heat: of every expert, its choices of late.

    residents: experts that slots serve now. pays: the guard has not switched the cache off here.
    """

    layer: Annotated[int, Field(ge=-1, le=4096)]
    n_slots: Count
    hits: Count
    misses: Count
    promotions: Count
    bytes_moved: Count
    pays: bool
    heat: Annotated[tuple[Heat, ...], Field(max_length=65_536)]
    residents: Annotated[tuple[Count, ...], Field(max_length=65_536)]


@with_config(_STRICT)
@dataclass(frozen=True)
class DeviceMemory:
    """A ggml device's memory, whoever uses it."""

    name: Name
    used_bytes: Count
    total_bytes: Count


@with_config(_STRICT)
@dataclass(frozen=True)
class KvRow:
    """One sequence's part of the KV cache. cells: positions it holds, of `room`.

    running: they are of a text that is being computed; else of one that has ended, kept for one that begins alike.
    """

    cells: Count
    room: Count
    running: bool


@dataclass(frozen=True)
class Flow:
    """What went through an engine since its model was loaded, in tokens, and what its KV cache holds."""

    prompt_tokens: int
    reply_tokens: int
    kv: tuple[KvRow, ...]


@with_config(_STRICT)
@dataclass(frozen=True)
class Activity:
    """One sample. at_s: Unix time. prompt_tokens, reply_tokens: computed since the model was loaded.

    kv: each sequence's part of the KV cache. rss_bytes: of the engine process.
    """

    model: Name
    emulated: bool
    at_s: Annotated[float, Field(ge=0, le=1e12)]
    prompt_tokens: Count
    reply_tokens: Count
    kv: Annotated[tuple[KvRow, ...], Field(max_length=4096)]
    rss_bytes: Count
    devices: Annotated[tuple[DeviceMemory, ...], Field(max_length=64)]
    layers: Annotated[tuple[LayerActivity, ...], Field(max_length=4096)]


ACTIVITY = TypeAdapter(Activity)
