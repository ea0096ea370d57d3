"""The token trace: the workload's lengths, whatever the texts' length."""

from dataclasses import replace

import pytest
from fake_runner import Landscape
from world import WORKLOAD, machine_with, moe_model, runner_for

from moetune.autotune.trace import build_trace, shape_for
from moetune.errors import ExitCode, MoetuneError

RUNNER = runner_for(machine_with(), moe_model(), Landscape())


def test_the_trace_has_the_workloads_lengths_and_repeats_short_texts() -> None:
    """Depth, prompt and reply follow one another in the text, which is short here and starts again."""
    trace = build_trace(WORKLOAD, shape_for(WORKLOAD, 2048), 2048, RUNNER)
    assert (len(trace.depth_tokens), len(trace.prompt_tokens), len(trace.reply_tokens)) == (64, 128, 64)
    text = [token for part in WORKLOAD.texts for token in RUNNER.tokenize(part)]
    whole = trace.depth_tokens + trace.prompt_tokens + trace.reply_tokens
    assert whole == tuple((text * 2)[:256])
    assert trace.warmup_tokens == tuple((text * 20)[256:512])


def test_the_warm_up_takes_the_room_there_is() -> None:
    """It stands where the reply does, and goes no further than the context."""
    trace = build_trace(WORKLOAD, shape_for(WORKLOAD, 300), 300, RUNNER)
    assert len(trace.warmup_tokens) == 300 - 64 - 128
    assert trace.n_ctx_needed == 300


def test_the_same_workload_gives_the_same_trace() -> None:
    """Every trial must be measured on the same tokens."""
    shape = shape_for(WORKLOAD, 2048)
    assert build_trace(WORKLOAD, shape, 2048, RUNNER) == build_trace(WORKLOAD, shape, 2048, RUNNER)


@pytest.mark.parametrize("n_ctx", [255, 128, 100, 40, 17, 16])
def test_a_smaller_context_scales_the_request(n_ctx: int) -> None:
    """All lengths shrink together and the request fits."""
    shape = shape_for(WORKLOAD, n_ctx)
    assert shape.scaled
    assert build_trace(WORKLOAD, shape, n_ctx, RUNNER).n_ctx_needed <= n_ctx
    assert shape.prompt_tokens >= 8
    assert shape.reply_tokens >= 8


def test_a_context_that_holds_the_workload_is_not_scaled() -> None:
    """Exactly large enough is large enough."""
    assert not shape_for(WORKLOAD, 256).scaled


def test_a_context_too_small_for_any_request_is_an_error() -> None:
    """With what would do."""
    with pytest.raises(MoetuneError, match="256") as caught:
        shape_for(WORKLOAD, 15)
    assert caught.value.code is ExitCode.USAGE


def test_texts_without_tokens_are_an_error() -> None:
    """A vocabulary that knows none of the text."""
    with pytest.raises(MoetuneError) as caught:
        build_trace(replace(WORKLOAD, texts=("",)), shape_for(WORKLOAD, 256), 256, RUNNER)
    assert caught.value.code is ExitCode.MODEL
