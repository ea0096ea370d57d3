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
from moetune.engine.activity import Activity, Flow
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats, TextChunk
from moetune.engine.inbox import Inbox
from moetune.engine.measurement import Failed, FailureReason, Measurement, Trace
from moetune.engine.model_handle import EngineFailure, ModelHandle
from moetune.engine.native_log import NativeLog
from moetune.engine.observation import observe
from moetune.engine.passage import TokenScores
from moetune.engine.routing import RoutedBatch
from moetune.engine.routing_recorder import BadRecord, RoutingRecorder
from moetune.engine.sequence_context import SequenceContext
from moetune.engine.serving_loop import ServingLoop
from moetune.engine.steadiness import WINDOW_TOKENS, Steadiness
from moetune.engine.watching import Watchtower, watch_folder
from moetune.errors import MoetuneError

_IDLE = Flow(0, 0, ())


@dataclass(frozen=True)
class Setup:
    """Fixed for the life of a worker.

    backends: ggml libraries to register first, each with the environment it reads. cache_device: fast tier of the
    hot-expert cache, None to leave the plugin out. cold_device: who computes misses, None for the CPU. watched:
    whether `moetune monitor` may look on; a measurement must not be disturbed.
    """

    model_path: str
    backends: tuple[tuple[str, dict[str, str]], ...]
    cache_device: str | None
    cold_device: str | None
    watched: bool


class Worker:
    """Serves one request after the other. `send` passes a response to the parent; `inbox` is where more may wait."""

    def __init__(self, setup: Setup, log: NativeLog, send: Callable[[protocol.Response], None], inbox: Inbox) -> None:
        self._path = Path(setup.model_path)
        self._log = log
        self._send = send
        self._inbox = inbox
        for path, environment in setup.backends:
            library.load_backend(Path(path), environment)
        self._cache = library.HotCache(setup.cache_device, setup.cold_device) if setup.cache_device else None
        self._model: ModelHandle | None = None
        self._config: EngineConfig | None = None
        self._recorder: RoutingRecorder | None = None
        self._generated_with: EngineConfig | None = None
        self._used_before_bytes = 0
        self._emulated = bool(setup.backends)
        self._devices: tuple[str, ...] = ()
        self._loop: ServingLoop | None = None
        self._busy = False

    def serve(self, request: protocol.Request) -> None:
        """Answer one request; an EngineFailure or MoetuneError becomes `Refused` and the worker goes on."""
        self._busy = True
        try:
            match request:
                case protocol.Load():
                    self._load(request)
                case protocol.Measure():
                    self._send(protocol.Measured(self._measure(request.config, request.trace, request.passes)))
                case protocol.Tokenize():
                    self._send(protocol.Tokens(tuple(self._loaded().tokenize(request.text))))
                case protocol.Render():
                    self._send(protocol.Tokens(tuple(self._loaded().prompt_tokens(request.request))))
                case protocol.Generate():
                    self._generate(request)
                case protocol.Route():
                    self._send(protocol.Routed(self._route(request)))
                case protocol.Score():
                    self._send(protocol.Scored(self._score(request)))
                case protocol.Stop():
                    pass  # what it was to end has ended by itself
                case protocol.Serve():
                    self._serve_sequences(request)
        except EngineFailure as failure:
            self._send(protocol.Refused(failure.failed))
        except MoetuneError as error:
            self._send(protocol.Refused(Failed(FailureReason.REFUSED, error.cause)))
        finally:
            self._busy = False

    def activity(self) -> Activity:
        """What this process does now; safe from another thread while a request is served."""
        flow = _IDLE
        if self._loop is not None:
            flow = self._loop.flow()
        elif (model := self._model) is not None:
            flow = model.flow(running=self._busy)
        return observe(self._path.stem, flow, self._devices, self._cache, emulated=self._emulated)

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
        self._model, self._config, self._recorder, self._generated_with = None, None, None, None
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
        self._config, self._recorder, self._generated_with = config, None, None
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
        goes_on = self._generated_with == request.config
        model = self._loaded() if goes_on else self._apply(request.config)
        tokens = model.prompt_tokens(request.request)
        if not tokens:
            raise EngineFailure(FailureReason.REFUSED, "the prompt has no tokens")
        if len(tokens) >= model.n_ctx:
            detail = f"the prompt has {len(tokens)} tokens, the context {model.n_ctx}; use a larger --ctx"
            raise EngineFailure(FailureReason.REFUSED, detail)
        self._generated_with = None  # until it has ended well
        n_kept = model.keep_beginning(tokens)
        start = time.perf_counter()
        n_read = self._read_prompt(model, request.config, tokens[n_kept:])
        prompt_s = time.perf_counter() - start
        if self._cache is not None:
            self._cache.reset_counters()
        start = time.perf_counter()
        n_reply, stopped = 0, "asked"
        if n_kept + n_read == len(tokens):
            model.require_finite_logits()
            n_reply, stopped = self._reply(model, request.request)
        reply_s = time.perf_counter() - start
        counters = library.total(self._cache.layers()) if self._cache is not None else None
        self._generated_with = request.config
        stats = GenerationStats(n_read, prompt_s, n_reply, reply_s, stopped, counters, n_kept)
        self._send(protocol.Generated(stats))

    def _read_prompt(self, model: ModelHandle, config: EngineConfig, tokens: list[int]) -> int:
        """Compute the prompt unless something else is asked for; the tokens computed."""
        # Several devices work on micro-batches in turn, which a look at every one of them would forbid.
        step = config.n_ubatch if not config.more_devices else len(tokens)
        n_read = 0
        while n_read < len(tokens) and not self._inbox.waits():
            model.decode(tokens[n_read : n_read + step])
            n_read = min(n_read + step, len(tokens))
        return n_read

    def _reply(self, model: ModelHandle, request: GenerationRequest) -> tuple[int, str]:
        """Send text as it comes; the tokens generated, and why no more."""
        stream = model.stream(request, self._inbox.waits)
        while True:
            try:
                self._send(protocol.Chunk(TextChunk(next(stream))))
            except StopIteration as end:
                n_reply, stopped = end.value
                return n_reply, stopped

    def _route(self, request: protocol.Route) -> RoutedBatch:
        model = self._loaded()
        if self._recorder is None or self._config != request.config:
            # A context that is being watched serves nothing else: watching costs time.
            recorder = RoutingRecorder()
            model.open_context(request.config, recorder.callback)
            self._config, self._recorder, self._generated_with = request.config, recorder, None
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

    def _serve_sequences(self, request: protocol.Serve) -> None:
        model = self._loaded()
        self._set_cache(None)
        context = SequenceContext(model, request.config, request.n_sequences, self._log)
        self._set_cache(request.config.cache)
        if self._cache is not None:
            self._cache.reset_counters()
        self._send(protocol.Serving(context.n_ctx))
        layers = self._cache.layers if self._cache is not None else list
        self._loop = ServingLoop(model, context, layers, self._send)
        try:
            self._loop.run(self._inbox.take)
        finally:
            context.close()


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

    log, inbox = NativeLog(sys.stderr), Inbox()
    try:
        worker = Worker(setup, log, send, inbox)
    except MoetuneError as error:
        send(protocol.Refused(Failed(FailureReason.REFUSED, error.cause)))
        return
    with _watched(setup, worker):
        while (request := inbox.take()) is not None and not isinstance(request, protocol.Quit):
            worker.serve(request)
    worker.close()


def _watched(setup: Setup, worker: Worker) -> contextlib.AbstractContextManager[object]:
    """Open to `moetune monitor` where that is allowed; a run is not worth losing for want of a socket."""
    if setup.watched:
        try:
            return Watchtower(watch_folder() / f"{os.getpid()}.sock", worker.activity)
        except MoetuneError as error:
            print(f"moetune: {error.cause}", file=sys.stderr)
    return contextlib.nullcontext()


if __name__ == "__main__":
    main()
