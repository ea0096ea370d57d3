"""Generations that follow one another in one engine process: what is kept, and how one is stopped."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine import protocol
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.generation import ChatMessage, GenerationRequest, GenerationStats, TextChunk
from moetune.engine.measurement import Trace
from moetune.engine.process import WorkerProcess
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

STOCK = EngineConfig(n_ctx=1024, n_threads=1, n_ubatch=64)
CACHED = replace(STOCK, device="CPU", repack=False, cache=CacheKnobs(slots=8))
ASKED = GenerationRequest("def read_lines(path):", max_tokens=16)
LIMIT_S = 60


@pytest.fixture
def runner() -> Iterator[EngineRunner]:
    """The demo model, whose next tokens are sure enough to be compared."""
    with EngineRunner(demo_model_path()) as running:
        yield running


def generated(
    runner: EngineRunner, request: GenerationRequest, config: EngineConfig = STOCK
) -> tuple[str, GenerationStats]:
    *chunks, stats = runner.generate(config, request, time_limit_s=LIMIT_S)
    assert isinstance(stats, GenerationStats)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), stats


def after(request: GenerationRequest, answer: str, prompt: str) -> GenerationRequest:
    """The next request of the conversation."""
    said = (ChatMessage("user", request.prompt), ChatMessage("assistant", answer))
    return replace(request, history=(*request.history, *said), prompt=prompt)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "raw"])
@pytest.mark.parametrize("config", [STOCK, CACHED], ids=["stock", "cache"])
def test_a_conversation_goes_on_where_it_was(runner: EngineRunner, config: EngineConfig, chat: bool) -> None:
    """What was said is not computed again, and the answer is what it would have been if it were."""
    first = replace(ASKED, chat=chat)
    answer, stats = generated(runner, first, config)
    assert stats.n_kept == 0
    second = after(first, answer, "\n    for line in")
    n_tokens = runner.prompt_tokens(config, second, time_limit_s=LIMIT_S)
    text, stats = generated(runner, second, config)
    assert stats.n_kept + stats.n_prompt == n_tokens
    assert stats.n_kept >= stats.n_prompt
    with EngineRunner(demo_model_path()) as fresh:
        assert generated(fresh, second, config)[0] == text


def test_a_prompt_that_begins_differently_begins_anew(runner: EngineRunner) -> None:
    """And gives what a fresh engine gives; asking the same again computes one token only."""
    generated(runner, ASKED)
    other = replace(ASKED, prompt="import os")
    text, stats = generated(runner, other)
    assert stats.n_kept == 0
    again, stats = generated(runner, other)
    assert (again, stats.n_prompt) == (text, 1)


def test_slots_stay_between_answers_and_not_after_a_measurement(runner: EngineRunner) -> None:
    """The experts of a conversation are at home from its second answer on; a measurement begins from nothing."""
    text, first = generated(runner, ASKED, CACHED)
    _, second = generated(runner, after(ASKED, text, "\n"), CACHED)
    trace = Trace("test", (), tuple(range(1, 20)), tuple(range(20, 30)), ())
    runner.measure(CACHED, trace, passes=1, time_limit_s=LIMIT_S)
    _, third = generated(runner, ASKED, CACHED)
    assert first.counters is not None
    assert second.counters is not None
    assert third.counters is not None
    assert second.counters.promotions < first.counters.promotions
    assert third.n_kept == 0
    assert third.counters.promotions > second.counters.promotions
    assert third.counters.hits < second.counters.hits


def test_a_generation_can_be_stopped(runner: EngineRunner) -> None:
    """It ends in good order and early, and the next one runs in the same process."""
    items = runner.generate(STOCK, replace(ASKED, max_tokens=900), time_limit_s=LIMIT_S)
    next(items)
    runner.stop()
    *_, stats = items
    assert isinstance(stats, GenerationStats)
    assert stats.stopped == "asked"
    assert 0 < stats.n_reply < 900
    pid = runner.pid
    assert generated(runner, ASKED)[1].stopped == "limit"
    assert runner.pid == pid


def test_stopping_what_has_ended_changes_nothing(runner: EngineRunner) -> None:
    """A word that comes too late is not for the next generation; nor is one to a process that is gone."""
    runner.stop()
    generated(runner, ASKED)
    runner.stop()
    assert generated(runner, replace(ASKED, max_tokens=40))[1].n_reply == 40
    runner.close()
    runner.stop()


def test_a_long_prompt_can_be_stopped(monkeypatch: pytest.MonkeyPatch, runner: EngineRunner) -> None:
    """Between two micro-batches; what was computed by then is kept for the next time."""
    long = replace(ASKED, prompt="import os\n" * 180)
    send = WorkerProcess.send

    def send_and_stop(process: WorkerProcess, request: protocol.Request) -> object:
        failed = send(process, request)
        if isinstance(request, protocol.Generate):
            process.stop()
        return failed

    runner.load(STOCK, time_limit_s=LIMIT_S)
    n_tokens = runner.prompt_tokens(STOCK, long, time_limit_s=LIMIT_S)
    with monkeypatch.context() as patched:
        patched.setattr(WorkerProcess, "send", send_and_stop)
        text, stats = generated(runner, long)
    assert (text, stats.stopped, stats.n_reply) == ("", "asked", 0)
    assert stats.n_prompt < n_tokens
    assert generated(runner, long)[1].n_kept == stats.n_prompt


def test_a_chat_template_that_fails_is_an_error_of_the_request(tmp_path: Path) -> None:
    """It is a program out of the file; the engine survives it."""
    broken = tmp_path / "broken.gguf"
    raw = demo_model_path().read_bytes()
    at = raw.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template") + 4
    length = int.from_bytes(raw[at : at + 8], "little")
    program = b"{{ raise_exception('not like this') }}".ljust(length)
    assert len(program) == length
    broken.write_bytes(raw[: at + 8] + program + raw[at + 8 + length :])
    with EngineRunner(broken) as runner:
        with pytest.raises(MoetuneError, match="not like this") as failed:
            generated(runner, replace(ASKED, chat=True))
        assert failed.value.code is ExitCode.ENGINE
        assert generated(runner, ASKED)[0]


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    """Also where only the tokens are counted."""
    path = tmp_path / "plain.gguf"
    write_synthetic(path, SyntheticSpec(layers=1, experts=4, used=2, embd=128, ff=64, context=256))
    config = replace(STOCK, n_ctx=256)
    with EngineRunner(path) as runner:
        runner.load(config, time_limit_s=LIMIT_S)
        with pytest.raises(MoetuneError, match="no chat template"):
            runner.prompt_tokens(config, replace(ASKED, chat=True), time_limit_s=LIMIT_S)
