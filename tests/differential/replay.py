"""Replay scenarios, one JSON line each, and save every logit, bit for bit.

A process of its own for each choice of backends, because what ggml has registered stays registered. Answers each line
of standard input, "SCENARIO_JSON<tab>LOGITS_PATH", with one JSON line on standard output: what the cache counted.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import psutil
from machine import Machine
from scenario import Scenario

from moetune.engine import library
from moetune.engine.config import CacheKnobs, EngineConfig, LoadMode
from moetune.engine.emulator import library_path, parse_emulated
from moetune.engine.measurement import CacheCounters
from moetune.engine.model_handle import ModelHandle
from moetune.engine.native_log import NativeLog

KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
# Where a context shift keeps the beginning of the text, as llama.cpp's own programs do.
KEPT_TOKENS = 4
# Every setting a scenario may leave out. Slots fill fast and change hands often, which is where mistakes would show.
DEFAULTS = {
    "device": "",
    "slots": "6",
    "bytes": "0",
    "cold_device": "",
    "policy": "heat",
    "interval": "1",
    "hysteresis": "1.25",
    "promotions": "4",
    "min_sightings": "1",
    "dwell": "2",
    "half_life": "128",
    "spread": "flat",
    "whole_layers": "0",
    "profile": "",
    "workload": "",
    "reserve": "auto",
    "in_flight": str(64 << 20),
    "path": "auto",
    "prefill": "auto",
    "prefill_heat": "0",
    "staging": "auto",
    "repack": "0",
    "guard": "0",
    "ahead": "auto",
    "hold": "auto",
}


class NeverDecoded(Exception):
    """A decode was refused as often as it was tried."""


class Cache(library.HotCache):
    """The plugin with what only tests want of it; it counts on when slots, and their counters, go."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._gone: list[CacheCounters] = []

    def counted(self) -> CacheCounters | None:
        """Everything since `forget`; None when no layer had slots."""
        here = library.total(self.layers())
        every = [*self._gone, *([here] if here else [])]
        sums = {f.name: sum(getattr(c, f.name) for c in every) for f in fields(CacheCounters)}
        return CacheCounters(**sums) if every else None

    def forget(self) -> None:
        """Empty slots, and count from zero."""
        self._lib.hotcache_clear()
        self._gone = []

    def set(self, key: str, value: str) -> None:
        with self._counting_on():
            super().set(key, value)

    @contextmanager
    def _counting_on(self) -> Iterator[None]:
        before = library.total(self.layers())
        yield
        if before and not self.layers():
            self._gone.append(before)

    def try_set(self, key: bytes | None, value: bytes | None) -> str:
        """What the plugin says to a value; empty when it takes it."""
        error = ctypes.create_string_buffer(8192)
        with self._counting_on():
            failed = self._lib.hotcache_set(key, value, error, len(error)) != 0
        assert failed == bool(error.value)
        return error.value.decode(errors="replace")

    def misused(self) -> list[str]:
        """Answers to null keys and values, to rooms too small for the answer, and to no room at all."""
        answers = [self.try_set(None, b"1"), self.try_set(b"slots", None), self.try_set(None, None)]
        for room in (1, 2, 10):
            error = ctypes.create_string_buffer(b"x" * 64, 64)
            assert self._lib.hotcache_set(b"slots", b"many", error, room) != 0
            assert len(error.value) == room - 1
            assert error.raw[room:] == (b"x" * 64)[room:], "written beyond its room"
        assert self._lib.hotcache_set(b"slots", b"many", None, 0) != 0
        assert self._lib.hotcache_layers(None, 0) == len(self.layers())
        return answers

    def slot_bytes(self) -> int:
        return sum(state.slot_bytes for state in self.layers())

    def clear(self) -> None:
        with self._counting_on():
            self._lib.hotcache_clear()

    def arrived(self) -> int:
        """Promotions that have arrived so far."""
        return sum(state.counters.promotions for state in self.layers())


class Replay:
    """Runs the steps of one scenario; a step is a method. Everything random repeats exactly."""

    def __init__(self, scenario: Scenario, model: ModelHandle, cache: Cache | None) -> None:
        self._scenario, self._model, self._cache = scenario, model, cache
        self._rng = np.random.default_rng(7)
        self._position = [0] * scenario.sequences
        self._asked = 0
        self.failures = 0
        self.answers: list[str] = []
        self.slot_bytes: list[int] = []
        self._observer = llama.ggml_backend_sched_eval_callback(self._observe)
        self._aborter = llama.ggml_abort_callback(lambda _data: True)
        self._adapters = [self._adapter(path) for path in scenario.loras]
        self.rows: list[np.ndarray] = []
        self._context = self._new_context()

    def run(self) -> np.ndarray:
        """Logits [rows, n_vocab]."""
        try:
            for name, *arguments in self._scenario.steps:
                getattr(self, str(name))(*arguments)
        except NeverDecoded:
            print("given up", file=sys.stderr)
        self.close()
        return np.stack(self.rows)

    def close(self) -> None:
        """Free the context and the adapters."""
        llama.llama_free(self._context)
        for adapter in self._adapters:
            llama.llama_adapter_lora_free(adapter)

    # ---- steps

    def prompt(self, n: int) -> None:
        """n further tokens of every sequence in one batch; rows: the last of each."""
        self._submit((s, i == n - 1) for s in range(self._scenario.sequences) for i in range(n))

    def batch(self, n: int) -> None:
        """As `prompt`; rows: all."""
        self._submit((s, True) for s in range(self._scenario.sequences) for _ in range(n))

    def decode(self, n: int) -> None:
        """n times one token of every sequence."""
        for _ in range(n):
            self._submit((s, True) for s in range(self._scenario.sequences))

    def alone(self, sequence: int, n: int) -> None:
        """n times one token of one sequence."""
        for _ in range(n):
            self._submit([(sequence, True)])

    def insist(self, n: int, tries: int) -> None:
        """n tokens of every sequence, each again and again until it decodes. The scenario ends after so many tries."""
        for _ in range(n):
            self._submit([(s, True) for s in range(self._scenario.sequences)], tries)

    def abort(self) -> None:
        """A token whose decoding somebody aborts, then the same once more."""
        before, never = self.failures, llama.ggml_abort_callback(0)
        llama.llama_set_abort_callback(self._context, self._aborter, None)
        tokens = [(s, True) for s in range(self._scenario.sequences)]
        self._submit(tokens, 2, lambda: llama.llama_set_abort_callback(self._context, never, None))
        assert self.failures > before, "nothing was aborted"

    def shift(self, n: int) -> None:
        """Forget n tokens after the first few of every sequence and move the rest up."""
        memory = llama.llama_get_memory(self._context)
        assert llama.llama_memory_can_shift(memory)
        for s in range(self._scenario.sequences):
            assert llama.llama_memory_seq_rm(memory, s, KEPT_TOKENS, KEPT_TOKENS + n)
            llama.llama_memory_seq_add(memory, s, KEPT_TOKENS + n, -1, -n)
            self._position[s] -= n

    def copy(self, source: int, target: int) -> None:
        """Let one sequence go on from where another one is."""
        memory = llama.llama_get_memory(self._context)
        llama.llama_memory_seq_rm(memory, target, -1, -1)
        llama.llama_memory_seq_cp(memory, source, target, -1, -1)
        self._position[target] = self._position[source]

    def rewind(self, n: int) -> None:
        """Forget the last n tokens of every sequence."""
        memory = llama.llama_get_memory(self._context)
        for s in range(self._scenario.sequences):
            self._position[s] -= n
            assert llama.llama_memory_seq_rm(memory, s, self._position[s], -1)

    def adapt(self, *scales: float) -> None:
        """Switch the scenario's adapters on with these scales; none switches them off."""
        n = len(scales)
        adapters = (llama.llama_adapter_lora_p_ctypes * max(n, 1))(*self._adapters[:n])
        assert llama.llama_set_adapters_lora(self._context, adapters, n, (ctypes.c_float * max(n, 1))(*scales)) == 0

    def reopen(self) -> None:
        """A new context on the same model."""
        llama.llama_free(self._context)
        self._position = [0] * self._scenario.sequences
        self._context = self._new_context()

    def set(self, key: str, value: str) -> None:
        """One of the cache's settings, in the middle of everything."""
        if self._cache is not None:
            self._cache.set(key, value)

    def apply(self, routing: str, workload: str) -> None:
        """Everything that a trial of the search sets at once."""
        if self._cache is not None:
            self._cache.apply(CacheKnobs(slots=6, routing=routing, workload=workload))

    def try_set(self, key: str, value: str) -> None:
        """As `set`, for values that may be refused."""
        if self._cache is not None:
            self.answers.append(self._cache.try_set(key.encode(), value.encode()))

    def restore(self, key: str) -> None:
        """Back to what the scenario began with."""
        if self._cache is not None:
            self._cache.set(key, dict(settings_of(self._scenario))[key])

    def fault(self, variable: str, value: str | int) -> None:
        """Something happens to the emulated machine."""
        if self._cache is not None:
            Machine().set(variable, value)

    def look(self) -> None:
        """Note the bytes that slots take now."""
        if self._cache is not None:
            self.slot_bytes.append(self._cache.slot_bytes())

    def misuse(self) -> None:
        """Calls that a careful caller does not make; the answers tell what came of each."""
        if self._cache is not None:
            self.answers += self._cache.misused()

    def drop(self) -> None:
        """Empty all slots."""
        if self._cache is not None:
            self._cache.clear()

    # ---- below the steps

    def _adapter(self, path: str) -> Any:
        adapter = llama.llama_adapter_lora_init(self._model._model, path.encode())
        assert adapter, f"llama.cpp does not take {path}"
        return adapter

    def _new_context(self) -> Any:
        scenario = self._scenario
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = scenario.n_ctx, scenario.n_ctx, scenario.n_ubatch
        params.n_seq_max, params.kv_unified = scenario.sequences, True
        params.n_threads = params.n_threads_batch = scenario.n_threads
        params.type_k = params.type_v = KV_TYPES[scenario.kv]
        params.embeddings = scenario.encoder
        if scenario.observe_every:
            params.cb_eval = self._observer
        context = llama.llama_init_from_model(self._model._model, params)
        assert context, "no context"
        return context

    def _observe(self, _node: int, asking: bool, _data: int) -> bool:
        self._asked += asking
        return not asking or self._asked % self._scenario.observe_every == 0

    def _submit(
        self, tokens: Iterable[tuple[int, bool]], tries: int | None = None, between: Callable[[], None] = lambda: None
    ) -> None:
        """Decode one new token for each (sequence, wanted), keeping the rows wanted.

        It must succeed, or within so many tries, with a call of `between` before each; else NeverDecoded.
        """
        asked = list(tokens)
        batch = llama.llama_batch_init(len(asked), 0, 1)
        batch.n_tokens = len(asked)
        high = min(self._model.n_vocab, 250)
        for i, (sequence, wanted) in enumerate(asked):
            batch.token[i], batch.pos[i] = int(self._rng.integers(1, high)), self._position[sequence]
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
            self._position[sequence] += 1
        while (status := llama.llama_decode(self._context, batch)) != 0:
            assert tries is not None, f"llama_decode returned {status}"
            self.failures += 1
            tries -= 1
            if tries == 0:
                raise NeverDecoded
            between()
        encoder = self._scenario.encoder
        row_of = llama.llama_get_embeddings_ith if encoder else llama.llama_get_logits_ith
        width = llama.llama_model_n_embd(self._model._model) if encoder else self._model.n_vocab
        for i, (_, wanted) in enumerate(asked):
            if wanted:
                self.rows.append(np.ctypeslib.as_array(row_of(self._context, i), shape=(width,)).copy())
        llama.llama_batch_free(batch)
        if self._scenario.settled:
            self._settle()

    def _settle(self) -> None:
        """Return when no promotion has arrived for a while, so that what hits next does not depend on the clock."""
        if self._cache is None:
            return
        arrived, before = self._cache.arrived(), -1
        while arrived != before:
            time.sleep(0.0004)
            arrived, before = self._cache.arrived(), arrived


class Loaded:
    """The last model, kept for the next scenario with the same one in the same places."""

    def __init__(self) -> None:
        self._log = NativeLog(sys.stderr)
        self._key: tuple[object, ...] | None = None
        self._model: ModelHandle | None = None

    def close(self) -> None:
        if self._model is not None:
            self._model.close()

    def model_of(self, scenario: Scenario) -> ModelHandle:
        key = (scenario.model, scenario.mmap, scenario.packed, scenario.dense_on_device, scenario.experts_on_device)
        if self._model is None or key != self._key:
            self.close()
            self._key, self._model = key, ModelHandle(Path(scenario.model), self._log, placement(scenario))
        return self._model


def placement(scenario: Scenario) -> EngineConfig:
    on_device = scenario.dense_on_device
    return EngineConfig(
        n_ctx=scenario.n_ctx,
        n_threads=scenario.n_threads,
        device="EMU0" if on_device else None,
        gpu_layers=999 if on_device else 0,
        ram_expert_layers=max(0, 64 - scenario.experts_on_device) if on_device else 0,
        repack=scenario.packed,
        load_mode=LoadMode.MMAP if scenario.mmap else LoadMode.NONE,
    )


def settings_of(scenario: Scenario) -> dict[str, str]:
    """Every setting of the cache: a scenario's own, or the environment's, or the default."""
    usual = {key: os.environ.get(f"HOTCACHE_{key.upper()}", value) for key, value in DEFAULTS.items()}
    return usual | {"slots": DEFAULTS["slots"]} | dict(scenario.cache)


def configure(cache: Cache, scenario: Scenario) -> None:
    """All settings, whatever the scenario before left, and empty slots."""
    cache.set("slots", "0")
    for key, value in settings_of(scenario).items():
        cache.set(key, value)
    cache.forget()


def serve(cache: Cache | None, answer: Callable[[str], None]) -> None:
    """Replay what standard input asks for until it ends."""
    loaded = Loaded()
    for line in sys.stdin:
        text, out = line.rstrip("\n").split("\t")
        scenario = Scenario.from_json(text)
        print(f"--- {text}", file=sys.stderr, flush=True)
        machine = Machine() if library.device_handle("EMU0") is not None else None
        before = machine.counters() if machine else {}
        if machine:
            machine.repair()
        model = loaded.model_of(scenario)
        if cache is not None:
            configure(cache, scenario)
        replay = Replay(scenario, model, cache)
        np.save(out, replay.run())
        layers = cache.layers() if cache is not None else []
        counters = cache.counted() if cache is not None else None
        report = {
            "counters": asdict(counters) if counters else None,
            "fewest_slots": min((state.n_slots for state in layers), default=0),
            "failures": replay.failures,
            "answers": replay.answers,
            "slot_bytes": [*replay.slot_bytes, cache.slot_bytes() if cache is not None else 0],
            "machine": machine.since(before) if machine else {},
            "resident_bytes": resident_bytes(),
        }
        answer(json.dumps(report))
    loaded.close()


def resident_bytes() -> int:
    """Of this process, without Python's garbage and what its allocator keeps: both grow with llama.cpp alone too."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def register(fast_tier: str | None, emulated: str | None) -> Cache | None:
    """Register the emulated machine, then the plugin; None for stock llama.cpp."""
    if emulated:
        library.load_backend(library_path(), parse_emulated(emulated).environment())
    return Cache(fast_tier) if fast_tier else None


def main() -> None:
    """Register the backends asked for, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast-tier", help="load the plugin with this device as fast tier")
    parser.add_argument("--emulated", help="register this emulated machine first")
    parser.add_argument("--as-configured", action="store_true", help="load the plugin as the environment says")
    options = parser.parse_args()
    cache = register(options.fast_tier, options.emulated)
    if options.as_configured:
        library.load_backend(library.plugin_path(), {})
    # Standard output belongs to the answers: whatever native code prints goes with the errors.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(cache, lambda reply: print(reply, file=answers, flush=True))


if __name__ == "__main__":
    main()
