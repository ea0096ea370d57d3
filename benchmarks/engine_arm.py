"""One arm of the engine benchmark: a process that keeps one configuration loaded and measures blocks on request.

Reads an `Arm` as its argument and a `Block` a line from standard input, writes a `Sample` a line to the descriptor it
is told. Between blocks everything stays: the model, the slots, what the cache has learnt.
"""

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moetune.engine import library
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import library_path, parse_emulated
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.native_log import NativeLog


@dataclass(frozen=True)
class Arm:
    """How to run the model. emulated: the machine, None for this one. settings: the plugin's, None without plugin."""

    model: str
    config: dict[str, Any]
    emulated: str | None = None
    settings: dict[str, str] | None = None


@dataclass(frozen=True)
class Block:
    """Tokens of one measurement: a timed prompt, untimed warm-up tokens, timed reply tokens, all teacher-forced."""

    prompt: list[int]
    warmup: list[int]
    reply: list[int]


@dataclass(frozen=True)
class Sample:
    """Seconds of the prompt and of each reply token, and what was counted over the reply."""

    prompt_s: float
    reply_s: list[float]
    slots: list[int] = field(default_factory=list)
    cache: dict[str, float] = field(default_factory=dict)
    emulator: dict[str, int] = field(default_factory=dict)


class _EmulatorCounters(ctypes.Structure):
    """The leading fields of `emu_counter_values` of engine/native/emulator/emulator.h."""

    _names = (
        *("h2d_bytes", "d2h_bytes", "h2d_transfers", "d2h_transfers", "graphs", "launches", "device_bytes"),
        *("host_expert_bytes", "vram_used_bytes", "vram_peak_bytes", "link_busy_ns", "device_busy_ns", "host_busy_ns"),
        *("device_late_ns", "host_late_ns", "held_ns", "queue_link_wait_ns"),
    )
    _fields_ = [(name, ctypes.c_uint64) for name in _names]


class Emulator:
    """Reads the emulator's totals; nothing without one."""

    def __init__(self, emulated: str | None) -> None:
        self._lib = ctypes.CDLL(str(library_path())) if emulated else None

    def totals(self) -> dict[str, int]:
        """By name, since registration."""
        if self._lib is None:
            return {}
        counters = _EmulatorCounters()
        self._lib.emu_counters(ctypes.byref(counters), ctypes.c_size_t(ctypes.sizeof(counters)))
        return {name: getattr(counters, name) for name, _ in _EmulatorCounters._fields_}


def main() -> None:
    """Load, then measure until the end of standard input."""
    arm = Arm(**json.loads(sys.argv[1]))
    out = os.fdopen(int(sys.argv[2]), "w")
    config = EngineConfig(**arm.config)
    if arm.emulated:
        library.load_backend(library_path(), parse_emulated(arm.emulated).environment())
    cache = None
    if arm.settings is not None:
        cache = library.HotCache(config.device or "CPU", "EMUHOST" if arm.emulated else None, arm.settings)
    try:
        model = ModelHandle(Path(arm.model), NativeLog(sys.stderr), config)
        model.open_context(config)
    except EngineFailure as failure:
        sys.exit(f"{failure.failed.reason}: {failure.failed.detail}")
    emulator = Emulator(arm.emulated)
    for line in sys.stdin:
        out.write(json.dumps(asdict(measure(model, cache, emulator, Block(**json.loads(line))))) + "\n")
        out.flush()
    model.close()


def measure(model: ModelHandle, cache: library.HotCache | None, emulator: Emulator, block: Block) -> Sample:
    """One block from an empty KV cache."""
    model.clear()
    prompt_s = model.timed_decode(block.prompt)
    for token in block.warmup:
        model.decode([token])
    if cache is not None:
        cache.reset_counters()
    before = emulator.totals()
    reply_s = [model.timed_decode([token]) for token in block.reply]
    counted = {name: value - before[name] for name, value in emulator.totals().items()}
    layers = cache.layers() if cache is not None else []
    totals = library.total(layers)
    return Sample(
        prompt_s, reply_s, [layer.n_slots for layer in layers], asdict(totals) if totals is not None else {}, counted
    )


if __name__ == "__main__":
    main()
