"""What a running engine does at one moment: the data that `moetune monitor` shows, and its form on the wire."""

import os
import time
from dataclasses import dataclass
from typing import Annotated

import psutil
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
class Activity:
    """One sample. at_s: Unix time. prompt_tokens, reply_tokens: computed since the process began.

    kv_cells: positions that the KV cache holds, of kv_room. rss_bytes: of the engine process.
    """

    model: Name
    emulated: bool
    at_s: Annotated[float, Field(ge=0, le=1e12)]
    prompt_tokens: Count
    reply_tokens: Count
    kv_cells: Count
    kv_room: Count
    rss_bytes: Count
    devices: Annotated[tuple[DeviceMemory, ...], Field(max_length=64)]
    layers: Annotated[tuple[LayerActivity, ...], Field(max_length=4096)]


ACTIVITY = TypeAdapter(Activity)


@dataclass
class Flow:
    """Tokens through this process and what its KV cache holds: written by whoever decodes, read by who watches.

    One a process, like the plugin's counters. Plain numbers, so that writing them costs nothing.
    """

    prompt_tokens: int = 0
    reply_tokens: int = 0
    kv_cells: int = 0
    kv_room: int = 0

    def decoded(self, n_tokens: int) -> None:
        """A batch of one sequence was appended: more than one token at once is a prompt."""
        self.kv_cells += n_tokens
        if n_tokens == 1:
            self.reply_tokens += 1
        else:
            self.prompt_tokens += n_tokens


FLOW = Flow()


def sample(
    model: str, devices: tuple[DeviceMemory, ...], layers: tuple[LayerActivity, ...], *, emulated: bool
) -> Activity:
    """What this process does now."""
    return Activity(
        model=model[:200],
        emulated=emulated,
        at_s=time.time(),
        prompt_tokens=FLOW.prompt_tokens,
        reply_tokens=FLOW.reply_tokens,
        kv_cells=FLOW.kv_cells,
        kv_room=FLOW.kv_room,
        rss_bytes=psutil.Process(os.getpid()).memory_info().rss,
        devices=devices,
        layers=layers,
    )
