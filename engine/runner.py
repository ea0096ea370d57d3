"""The real `Runner`: keeps one engine process alive across trials and replaces it when the placement changes."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from moetune.engine import library, protocol
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.emulator import library_path as emulator_path
from moetune.engine.generation import GenerationRequest, GenerationStats, TextChunk
from moetune.engine.measurement import Failed, FailureReason, Measurement, Trace
from moetune.engine.passage import Passage, TokenScores
from moetune.engine.process import WorkerProcess
from moetune.engine.routing import RoutedBatch
from moetune.engine.worker import Setup
from moetune.errors import ExitCode, MoetuneError

# Device of the emulated machine that stands for its slow memory (engine/native/emulator).
EMULATED_HOST = "EMUHOST"

_TOKENIZE_LIMIT_S = 120.0


class EngineRunner:
    """Measures and generates with one model file, on this machine or on an emulated one."""

    def __init__(self, model_path: Path, emulated: EmulatedMachine | None = None, *, watched: bool = False) -> None:
        """watched: whether `moetune monitor` may look on."""
        self._path = model_path
        self._emulated = emulated
        self._watched = watched
        self._process: WorkerProcess | None = None
        self._placement: tuple[object, ...] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the live engine process."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def close(self) -> None:
        """End the engine process."""
        if self._process is not None:
            self._process.close()
        self._process, self._placement = None, None

    def measure(self, config: EngineConfig, trace: Trace, *, passes: int, time_limit_s: float) -> Measurement | Failed:
        """See `Runner`. The load, when one is needed, counts against the time limit and into `load_s`."""
        deadline = time.monotonic() + time_limit_s
        load_s = self._ready(config, deadline)
        if isinstance(load_s, Failed):
            return load_s
        response = self._call(protocol.Measure(config, trace, passes), deadline)
        match response:
            case Failed():
                return response
            case protocol.Measured():
                return replace(response.measurement, load_s=load_s)
            case _:
                return self._out_of_turn(response)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """See `Runner`. Loads the vocabulary alone when no model is loaded. Raises MoetuneError(ENGINE)."""
        deadline = time.monotonic() + _TOKENIZE_LIMIT_S
        ready = 0.0 if self.pid is not None else self._start(None, deadline)
        response = ready if isinstance(ready, Failed) else self._call(protocol.Tokenize(text), deadline)
        if isinstance(response, protocol.Tokens):
            return response.tokens
        raise _engine_error(response if isinstance(response, Failed) else self._out_of_turn(response))

    def load(self, config: EngineConfig, *, time_limit_s: float) -> None:
        """Load the model as `config` places it unless it lies there already. Raises MoetuneError when that fails."""
        ready = self._ready(config, time.monotonic() + time_limit_s)
        if isinstance(ready, Failed):
            raise _engine_error(ready)

    def prompt_tokens(self, config: EngineConfig, request: GenerationRequest, *, time_limit_s: float) -> int:
        """Tokens of the whole prompt, history and template included. Raises MoetuneError when the engine fails."""
        deadline = time.monotonic() + time_limit_s
        ready = self._ready(config, deadline)
        response = ready if isinstance(ready, Failed) else self._call(protocol.Render(request), deadline)
        if isinstance(response, protocol.Tokens):
            return len(response.tokens)
        raise _engine_error(response if isinstance(response, Failed) else self._out_of_turn(response))

    def stop(self) -> None:
        """End the generation that runs, from a signal's handler or another thread; it then ends with its statistics."""
        if self._process is not None:
            self._process.stop()

    def generate(
        self, config: EngineConfig, request: GenerationRequest, *, time_limit_s: float
    ) -> Iterator[TextChunk | GenerationStats]:
        """Text as it comes, then the statistics. Raises MoetuneError(ENGINE) when the engine fails."""
        deadline = time.monotonic() + time_limit_s
        ready = self._ready(config, deadline)
        if isinstance(ready, Failed):
            raise _engine_error(ready)
        response = self._call(protocol.Generate(config, request), deadline)
        while isinstance(response, protocol.Chunk):
            yield response.chunk
            response = self._process.receive(deadline) if self._process is not None else self._out_of_turn(response)
        if isinstance(response, protocol.Generated):
            yield response.stats
            return
        raise _engine_error(response if isinstance(response, Failed) else self._out_of_turn(response))

    def route(self, config: EngineConfig, tokens: tuple[int, ...], *, begins: bool, time_limit_s: float) -> RoutedBatch:
        """The experts chosen for each token; see `protocol.Route`. Raises MoetuneError when the engine fails."""
        deadline = time.monotonic() + time_limit_s
        ready = self._ready(config, deadline)
        response = ready if isinstance(ready, Failed) else self._call(protocol.Route(config, tokens, begins), deadline)
        if isinstance(response, protocol.Routed):
            return response.batch
        raise _engine_error(response if isinstance(response, Failed) else self._out_of_turn(response))

    def score(
        self, base: EngineConfig, others: tuple[EngineConfig, ...], passage: Passage, *, time_limit_s: float
    ) -> tuple[TokenScores, ...] | Failed:
        """See `Scorer`. The load, when one is needed, counts against the time limit."""
        if any(other.placement != base.placement for other in others):
            raise ValueError("configurations to compare must be placed alike")
        deadline = time.monotonic() + time_limit_s
        ready = self._ready(base, deadline)
        if isinstance(ready, Failed):
            return ready
        response = self._call(protocol.Score(base, others, passage), deadline)
        if isinstance(response, protocol.Scored):
            return response.scores
        return response if isinstance(response, Failed) else self._out_of_turn(response)

    def serve(
        self, config: EngineConfig, n_sequences: int, *, time_limit_s: float
    ) -> tuple[WorkerProcess, protocol.Serving]:
        """An engine that serves so many requests at once; see `protocol.Serve`. Raises MoetuneError when it cannot.

        The process stays this runner's: its end, by whatever cause, is the end of serving, and a next call starts anew.
        """
        deadline = time.monotonic() + time_limit_s
        ready = self._start(config, deadline)
        response = ready if isinstance(ready, Failed) else self._call(protocol.Serve(config, n_sequences), deadline)
        if isinstance(response, protocol.Serving) and self._process is not None:
            return self._process, response
        raise _engine_error(response if isinstance(response, Failed) else self._out_of_turn(response))

    def _call(self, request: protocol.Request, deadline: float) -> protocol.Response | Failed:
        if self._process is None:
            return Failed(FailureReason.CRASHED, "the engine process has ended")
        response = self._process.call(request, max(deadline - time.monotonic(), 0.0))
        if isinstance(response, Failed):
            self.close()  # a process that failed once holds who knows what memory
        return response

    def _ready(self, config: EngineConfig, deadline: float) -> float | Failed:
        """Seconds spent on loading; 0 when the live process already has this placement."""
        if self.pid is not None and self._placement == config.placement:
            return 0.0
        return self._start(config, deadline)

    def _start(self, config: EngineConfig | None, deadline: float) -> float | Failed:
        self.close()
        start = time.monotonic()
        self._process = WorkerProcess(self._setup(config))
        response = self._call(protocol.Load(config), deadline)
        if isinstance(response, Failed):
            return response
        if not isinstance(response, protocol.Ready):
            return self._out_of_turn(response)
        self._placement = config.placement if config is not None else None
        return time.monotonic() - start

    def _setup(self, config: EngineConfig | None) -> Setup:
        backends: tuple[tuple[str, dict[str, str]], ...] = ()
        if self._emulated is not None:
            backends = ((str(emulator_path()), self._emulated.environment()),)
        with_cache = config is not None and config.cache is not None
        return Setup(
            model_path=str(self._path),
            backends=backends,
            cache_device=config.device if config is not None and with_cache else None,
            cold_device=EMULATED_HOST if self._emulated is not None else None,
            watched=self._watched,
        )

    def _out_of_turn(self, response: protocol.Response) -> Failed:
        self.close()
        return Failed(FailureReason.CRASHED, f"the engine answered out of turn: {response.kind}")


def register_emulated(emulated: EmulatedMachine) -> None:
    """Make the emulated devices visible in this process, for probing them."""
    library.load_backend(emulator_path(), emulated.environment())


def _engine_error(failed: Failed) -> MoetuneError:
    remedies = {
        FailureReason.OUT_OF_MEMORY: "Use a smaller context or fewer at once, fewer layers on the device or slots.",
        FailureReason.HUNG: "Allow more time, or a smaller prompt.",
        FailureReason.REFUSED: "Change the request as the message says.",
    }
    code = ExitCode.MEMORY if failed.reason is FailureReason.OUT_OF_MEMORY else ExitCode.ENGINE
    remedy = remedies.get(failed.reason, "Check the model file, and try with plain llama.cpp settings.")
    return MoetuneError(f"{failed.reason}: {failed.detail}", remedy, code)
