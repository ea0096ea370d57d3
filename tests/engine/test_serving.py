"""The worker as it serves several requests at once: what each is told, and what is left behind."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine import protocol
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.generation import ChatMessage, GenerationRequest, Sampling, TextChunk
from moetune.engine.measurement import Failed
from moetune.engine.process import WorkerProcess
from moetune.engine.runner import EngineRunner
from moetune.engine.serving import (
    Accepted,
    Event,
    Finish,
    Finished,
    Piece,
    Refusal,
    Rejected,
    SequenceRequest,
    ServingState,
)

LIMIT_S = 60.0
CONFIG = EngineConfig(n_ctx=256, n_threads=1, n_ubatch=32, repack=False)
CACHED = replace(CONFIG, device="CPU", cache=CacheKnobs(slots=4))
PROMPTS = ("The quick brown fox", "jumps over", "the lazy dog, and then some more of the same text", "Z")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight MoE model without a chat template."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_synthetic(path, SyntheticSpec(layers=2, experts=8, used=2, embd=128, ff=64, kv_heads=1))
    return path


class Served:
    """What a serving process said, and its last state."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self.events: dict[int, list[Event]] = {}
        self.state: ServingState | None = None

    def submit(self, request: SequenceRequest) -> None:
        assert self._process.send(protocol.Submit(request)) is None

    def cancel(self, request_id: int) -> None:
        assert self._process.send(protocol.Cancel(request_id)) is None

    def hear(self) -> None:
        message = self._process.receive(time.monotonic() + LIMIT_S)
        assert not isinstance(message, Failed), message
        if isinstance(message, protocol.State):
            self.state = message.state
        else:
            assert isinstance(message, protocol.Said), message
            self.events.setdefault(message.event.id, []).append(message.event)

    def ended(self, request_id: int) -> Finished | Rejected:
        """Hear until the request has ended."""
        while True:
            last = self.events.get(request_id, [None])[-1]
            if isinstance(last, Finished | Rejected):
                return last
            self.hear()

    def idle(self) -> ServingState:
        """Hear until nothing runs or waits."""
        self.state = None
        while self.state is None or self.state.n_running + self.state.n_waiting:
            self.hear()
        return self.state

    def text(self, request_id: int) -> str:
        return "".join(event.text for event in self.events[request_id] if isinstance(event, Piece))


@pytest.fixture(params=[CONFIG, CACHED], ids=["stock", "cache"])
def served(request: pytest.FixtureRequest, model: Path) -> Iterator[Served]:
    """Two sequences."""
    with EngineRunner(model) as runner:
        process, serving = runner.serve(request.param, 2, time_limit_s=LIMIT_S)
        assert serving.n_ctx == CONFIG.n_ctx
        yield Served(process)


def alone(path: Path, config: EngineConfig, prompt: str, max_tokens: int) -> str:
    with EngineRunner(path) as runner:
        items = runner.generate(config, GenerationRequest(prompt, max_tokens), time_limit_s=LIMIT_S)
        return "".join(item.text for item in items if isinstance(item, TextChunk))


def test_several_at_once_say_what_each_says_alone(served: Served, model: Path) -> None:
    """Four requests on two sequences: accepted, begun in order, told apart by their ids."""
    for i, prompt in enumerate(PROMPTS):
        served.submit(SequenceRequest(i, prompt, 30))
    for i, prompt in enumerate(PROMPTS):
        end = served.ended(i)
        assert isinstance(end, Finished), end
        assert isinstance(served.events[i][0], Accepted)
        assert served.text(i) == alone(model, CONFIG, prompt, 30)
    state = served.idle()
    assert state.kv_cells == 2 * CONFIG.n_ctx
    assert state.kv_cells_used == 0


def test_a_cancelled_request_says_nothing_more(served: Served) -> None:
    """Whether it runs or waits; the next in line takes its place."""
    for i in range(3):
        served.submit(SequenceRequest(i, PROMPTS[0], 100 if i == 2 else None))
    while len(served.events.get(0, ())) < 3:
        served.hear()
    served.cancel(0)
    served.cancel(99)
    assert isinstance(served.ended(2), Finished)
    served.cancel(1)
    assert served.idle().kv_cells_used == 0
    for i in (0, 1):
        assert not isinstance(served.events[i][-1], Finished) or i == 1


def test_what_cannot_be_begun_is_refused_and_costs_nobody(served: Served) -> None:
    """A prompt without tokens, one that is too long, a chat for a model without a template."""
    served.submit(SequenceRequest(0, PROMPTS[0], 20))
    served.submit(SequenceRequest(1, "", 5))
    served.submit(SequenceRequest(2, "x y " * 400, 5))
    served.submit(SequenceRequest(3, (ChatMessage("user", "Hello"),), 5))
    refusals = [served.ended(i) for i in (1, 2, 3)]
    assert [end.refusal for end in refusals if isinstance(end, Rejected)] == [
        Refusal.BAD_PROMPT,
        Refusal.TOO_LONG,
        Refusal.BAD_PROMPT,
    ]
    assert isinstance(served.ended(0), Finished)


def test_a_reply_ends_where_its_context_does(served: Served) -> None:
    """Prompt and reply together fill one sequence's part of the KV cache, and no more."""
    served.submit(SequenceRequest(0, PROMPTS[0], None, Sampling(temperature=1.0, seed=1)))
    end = served.ended(0)
    assert isinstance(end, Finished)
    assert end.finish is Finish.STOP or end.n_prompt + end.n_reply == CONFIG.n_ctx


def test_whole_pieces_of_a_prompt_are_kept_for_the_next(served: Served) -> None:
    """Cut where they would be cut anew, so the reply is the same; a prompt that begins otherwise keeps nothing."""
    prompt = PROMPTS[2] * 2
    for i, text in enumerate((prompt, prompt, "?" + prompt)):
        served.submit(SequenceRequest(i, text, 10))
        served.ended(i)
    ends = [served.events[i][-1] for i in range(3)]
    kept = [end.n_kept for end in ends if isinstance(end, Finished)]
    assert kept[0] == kept[2] == 0
    assert kept[1] > 0
    assert kept[1] % CONFIG.n_ubatch == 0
    assert served.text(0) == served.text(1)
    assert served.idle().kv_cells_kept > 0


def test_an_engine_that_serves_does_nothing_else(model: Path) -> None:
    """It says so, and goes on; when asked to quit, it goes."""
    with EngineRunner(model) as runner:
        process, _ = runner.serve(CONFIG, 1, time_limit_s=LIMIT_S)
        assert process.send(protocol.Tokenize("x")) is None
        while isinstance(answer := process.receive(time.monotonic() + LIMIT_S), protocol.State):
            pass
        assert isinstance(answer, Failed)
        assert "does not tokenize" in answer.detail
        start = time.monotonic()
        process.close()
        assert time.monotonic() - start < 5
        assert not process.alive
