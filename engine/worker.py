"""The engine process: loads a model once, then serves requests until its parent closes the pipe.

Started as ``python -m moetune.engine.worker SETUP_JSON RESPONSE_FD``; requests come in on standard input.
Whatever happens to it — a crash in native code, memory refused, a kill — happens to this process only.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from moetune.engine import library, protocol
from moetune.engine.activity import Activity, DeviceMemory, LayerActivity, sample
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.generation import GenerationStats, TextChunk
from moetune.engine.measurement import Failed, FailureReason, Measurement, Trace
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.native_log import NativeLog
from moetune.engine.passage import TokenScores
from moetune.engine.routing import RoutedBatch
from moetune.engine.routing_recorder import BadRecord, RoutingRecorder
from moetune.engine.steadiness import WINDOW_TOKENS, Steadiness
from moetune.engine.watching import WATCH_VARIABLE, Watchtower, watch_folder
from moetune.errors import MoetuneError


@dataclass(frozen=True)
class Setup:
    """Fixed for the life of a worker.

    backends: ggml libraries to register first, each with the environment it reads. cache_device: fast tier of the
    hot-expert cache, None to leave the plugin out. cold_device: who computes misses, None for the CPU.
    """

    model_path: str
    backends: tuple[tuple[str, dict[str, str]], ...]
    cache_device: str | None
    cold_device: str | None


class Worker:
    """Serves one request after the other. `send` passes a response to the parent."""

    def __init__(self, setup: Setup, log: NativeLog, send: Callable[[protocol.Response], None]) -> None:
        self._path = Path(setup.model_path)
        self._log = log
        self._send = send
        for path, environment in setup.backends:
            library.load_backend(Path(path), environment)
        self._cache = library.HotCache(setup.cache_device, setup.cold_device) if setup.cache_device else None
        self._model: ModelHandle | None = None
        self._config: EngineConfig | None = None
        self._recorder: RoutingRecorder | None = None
        self._used_before_bytes = 0
        self._emulated = bool(setup.backends)
        self._devices: tuple[str, ...] = ()

    def serve(self, request: protocol.Request) -> None:
        """Answer one request; an EngineFailure or MoetuneError becomes `Refused` and the worker goes on."""
        try:
            match request:
                case protocol.Load():
                    self._load(request)
                case protocol.Measure():
                    self._send(protocol.Measured(self._measure(request.config, request.trace, request.passes)))
                case protocol.Tokenize():
                    self._send(protocol.Tokens(tuple(self._loaded().tokenize(request.text))))
                case protocol.Generate():
                    self._generate(request)
                case protocol.Route():
                    self._send(protocol.Routed(self._route(request)))
                case protocol.Score():
                    self._send(protocol.Scored(self._score(request)))
        except EngineFailure as failure:
            self._send(protocol.Refused(failure.failed))
        except MoetuneError as error:
            self._send(protocol.Refused(Failed(FailureReason.REFUSED, error.cause)))

    def activity(self) -> Activity:
        """What this process does now; safe from another thread while a request is served."""
        layers = self._cache.layers() if self._cache is not None else []
        return sample(
            self._path.stem,
            tuple(DeviceMemory(name, *library.device_memory_bytes(name)) for name in self._devices),
            tuple(self._layer_activity(state) for state in sorted(layers, key=lambda state: state.layer)),
            emulated=self._emulated,
        )

    def _layer_activity(self, state: library.LayerState) -> LayerActivity:
        heat, residents = self._cache.experts(state.layer) if self._cache is not None else ([], [])
        c = state.counters
        return LayerActivity(
            layer=state.layer,
            n_slots=state.n_slots,
            hits=c.hits,
            misses=c.misses,
            promotions=c.promotions,
            bytes_moved=c.bytes_moved,
            pays=not c.layers_off,
            heat=tuple(round(each, 3) for each in heat),
            residents=tuple(residents),
        )

    def close(self) -> None:
        """Free the model before the process ends."""
        if self._model is not None:
            self._model.close()

    def _loaded(self) -> ModelHandle:
        if self._model is None:
            raise EngineFailure(FailureReason.REFUSED, "no model is loaded")
        return self._model

    def _load(self, request: protocol.Load) -> None:
        self.close()
        self._model, self._config, self._recorder = None, None, None
        device = request.config.device if request.config is not None else None
        self._devices = (device, *request.config.more_devices) if request.config is not None and device else ()
        self._used_before_bytes = library.device_used_bytes(device) if device else 0
        start = time.perf_counter()
        self._model = ModelHandle(self._path, self._log, request.config)
        self._send(protocol.Ready(time.perf_counter() - start))

    def _apply(self, config: EngineConfig) -> ModelHandle:
        """Make the open context and the cache what `config` says; the placement is the loaded one already."""
        model = self._loaded()
        before = self._config
        live = before is not None and self._recorder is None and before.context == config.context
        self._set_cache(None)  # old slots must not stand in a new context's way
        if not live:
            model.open_context(config)
        model.set_threads(config.n_threads, config.batch_threads)
        model.clear()
        self._set_cache(config.cache)
        self._config, self._recorder = config, None
        return model

    def _set_cache(self, knobs: CacheKnobs | None) -> None:
        if self._cache is not None:
            self._cache.apply(knobs if knobs is not None else CacheKnobs(slots=0))

    def _measure(self, config: EngineConfig, trace: Trace, passes: int) -> Measurement:
        model = self._apply(config)
        if trace.n_ctx_needed > model.n_ctx:
            detail = f"the trace needs {trace.n_ctx_needed} positions, the context has {model.n_ctx}"
            raise EngineFailure(FailureReason.REFUSED, detail)
        depth = len(trace.depth_tokens)
        # Without a depth to fill first, one pass goes untimed: the first one touches all memory.
        model.decode(trace.depth_tokens or trace.prompt_tokens)
        model.require_finite_logits()
        pp_samples_s = []
        for _ in range(passes):
            if not model.forget_from(depth):
                model.clear()
                model.decode(trace.depth_tokens)
            pp_samples_s.append(model.timed_decode(trace.prompt_tokens))
        warmup_samples_s, steady = self._warm_up(model, trace.warmup_tokens)
        if not model.forget_from(depth + len(trace.prompt_tokens)):
            model.clear()
            model.decode((*trace.depth_tokens, *trace.prompt_tokens))
        if self._cache is not None:
            self._cache.reset_counters()
        tg_samples_s = [model.timed_decode([token]) for token in trace.reply_tokens]
        layers = self._cache.layers() if self._cache is not None else []
        used_bytes = library.device_used_bytes(config.device) - self._used_before_bytes if config.device else 0
        return Measurement(
            n_prompt=len(trace.prompt_tokens),
            pp_samples_s=tuple(pp_samples_s),
            tg_samples_s=tuple(tg_samples_s),
            fast_bytes=max(used_bytes, 0),
            slots=min((state.n_slots for state in layers), default=0),
            counters=library.total(layers),
            load_s=0.0,
            warmup_samples_s=tuple(warmup_samples_s),
            steady=steady,
        )

    def _warm_up(self, model: ModelHandle, tokens: tuple[int, ...]) -> tuple[list[float], bool]:
        """Seconds of each token until speed and hit rate are flat, and whether they became so."""
        steadiness = Steadiness()
        samples_s: list[float] = []
        for start in range(0, len(tokens) - WINDOW_TOKENS + 1, WINDOW_TOKENS):
            if self._cache is not None:
                self._cache.reset_counters()
            samples_s += [model.timed_decode([token]) for token in tokens[start : start + WINDOW_TOKENS]]
            counters = library.total(self._cache.layers()) if self._cache is not None else None
            steadiness.add(sum(samples_s[start:]), counters.hit_rate if counters else None)
            if steadiness.reached:
                return samples_s, True
        return samples_s, False

    def _generate(self, request: protocol.Generate) -> None:
        model = self._apply(request.config)
        prompt = model.chat_prompt(request.request.prompt) if request.request.chat else request.request.prompt
        tokens = model.tokenize(prompt, special=True)
        if not tokens:
            raise EngineFailure(FailureReason.REFUSED, "the prompt has no tokens")
        if len(tokens) >= model.n_ctx:
            detail = f"the prompt has {len(tokens)} tokens, the context {model.n_ctx}; use a larger --ctx"
            raise EngineFailure(FailureReason.REFUSED, detail)
        prompt_s = model.timed_decode(tokens)
        model.require_finite_logits()
        if self._cache is not None:
            self._cache.reset_counters()
        start = time.perf_counter()
        stream = model.stream(tokens, request.request)
        while True:
            try:
                self._send(protocol.Chunk(TextChunk(next(stream))))
            except StopIteration as end:
                n_reply, stopped = end.value
                break
        reply_s = time.perf_counter() - start
        counters = library.total(self._cache.layers()) if self._cache is not None else None
        self._send(protocol.Generated(GenerationStats(len(tokens), prompt_s, n_reply, reply_s, stopped, counters)))

    def _route(self, request: protocol.Route) -> RoutedBatch:
        model = self._loaded()
        if self._recorder is None or self._config != request.config:
            # A context that is being watched serves nothing else: watching costs time.
            recorder = RoutingRecorder()
            model.open_context(request.config, recorder.callback)
            self._config, self._recorder = request.config, recorder
        if request.begins:
            model.clear()
        tokens = [*(model.first_tokens if request.begins else ()), *request.tokens]
        model.decode(tokens, every_output=True)
        model.require_finite_logits()
        try:
            return self._recorder.take(len(request.tokens))
        except BadRecord as error:
            raise EngineFailure(FailureReason.REFUSED, str(error)) from error

    def _score(self, request: protocol.Score) -> tuple[TokenScores, ...]:
        from moetune.engine.scoring import compare  # SciPy, a quarter of a second that few workers need

        return compare(self._loaded(), self._apply, request.base, request.others, request.passage)


def _die_with_parent() -> None:
    """Linux ends this process when its parent dies, even in the middle of a long request."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    """Read requests until `Quit` or the end of standard input."""
    setup = TypeAdapter(Setup).validate_json(sys.argv[1])
    responses = os.fdopen(int(sys.argv[2]), "wb")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent()

    def send(response: protocol.Response) -> None:
        responses.write(protocol.encode(response))
        responses.flush()

    log = NativeLog(sys.stderr)
    try:
        worker = Worker(setup, log, send)
    except MoetuneError as error:
        send(protocol.Refused(Failed(FailureReason.REFUSED, error.cause)))
        return
    with _watched(worker):
        for line in sys.stdin.buffer:
            request = protocol.decode_request(line)
            if isinstance(request, protocol.Quit):
                break
            worker.serve(request)
    worker.close()


def _watched(worker: Worker) -> contextlib.AbstractContextManager[object]:
    """Open to `moetune monitor` where the command allows it; a run is not worth losing for want of a socket."""
    if WATCH_VARIABLE in os.environ:
        try:
            return Watchtower(watch_folder() / f"{os.getpid()}.sock", worker.activity)
        except MoetuneError as error:
            print(f"moetune: {error.cause}", file=sys.stderr)
    return contextlib.nullcontext()


if __name__ == "__main__":
    main()
