"""The worker process behind the real Runner: what lives across trials, and every way it can die."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import CacheKnobs, EngineConfig, FlashAttention, KvType, LoadMode, Policy, PromptWay
from moetune.engine.emulator import parse_emulated
from moetune.engine.generation import GenerationRequest, GenerationStats, TextChunk
from moetune.engine.measurement import Failed, FailureReason, Measurement, Trace
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

TRACE = Trace("test", tuple(range(1, 33)), tuple(range(40, 60)), tuple(range(60, 80)), tuple(range(80, 150)))
STOCK = EngineConfig(n_ctx=256, n_threads=1, n_ubatch=64)
CACHED = replace(STOCK, device="CPU", repack=False, cache=CacheKnobs(slots=4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight MoE model."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_synthetic(path, SyntheticSpec(arch="qwen3moe", layers=4, experts=16, used=4, embd=256, ff=128, quant="Q4_0"))
    return path


@pytest.fixture
def runner(model: Path) -> Iterator[EngineRunner]:
    """A runner whose process ends with the test."""
    with EngineRunner(model) as running:
        yield running


def measured(runner: EngineRunner, config: EngineConfig, trace: Trace = TRACE) -> Measurement:
    """A measurement, or the test fails with the engine's words."""
    result = runner.measure(config, trace, passes=2, time_limit_s=60)
    assert isinstance(result, Measurement), result
    return result


def test_measurement_keeps_every_raw_sample(runner: EngineRunner) -> None:
    """Two prompt passes, a sample for every token after the warm-up, and no counters without the plugin."""
    result = measured(runner, STOCK)
    assert len(result.pp_samples_s) == 2
    assert len(result.tg_samples_s) == len(TRACE.reply_tokens)
    assert min(result.pp_samples_s + result.tg_samples_s) > 0
    assert result.counters is None
    assert result.load_s > 0


def test_one_process_serves_all_trials_of_a_placement(runner: EngineRunner) -> None:
    """Knobs, threads, KV types and context sizes change without loading the model again."""
    measured(runner, CACHED)
    pid = runner.pid
    variants = [
        replace(CACHED, cache=CacheKnobs(slots=8, policy=Policy.LRU, interval_tokens=1)),
        replace(CACHED, type_k=KvType.Q8_0, type_v=KvType.Q8_0),
        replace(CACHED, n_ctx=512, n_ubatch=32, n_threads=2),
        replace(CACHED, n_threads=1, n_threads_batch=2),
        replace(CACHED, flash_attn=FlashAttention.OFF),
        replace(CACHED, cache=CacheKnobs(slots=4, repack=True, prefill=PromptWay.COLD, reserve_bytes=1 << 20)),
        replace(CACHED, cache=CacheKnobs(slots=0)),
    ]
    for config in variants:
        result = measured(runner, config)
        assert result.load_s == 0
        assert config.cache is not None
        assert result.slots == config.cache.slots
        assert (result.counters is None) == (config.cache.slots == 0)
    assert runner.pid == pid


def test_counters_cover_the_timed_tokens_only(runner: EngineRunner) -> None:
    """Every timed token routes used x layers pairs, each a hit or a miss."""
    result = measured(runner, CACHED)
    assert result.counters is not None
    timed = len(result.tg_samples_s)
    assert result.counters.hits + result.counters.misses == timed * 4 * 4
    assert result.counters.cold_s > 0


def test_another_placement_gets_a_fresh_process(runner: EngineRunner) -> None:
    """Stock llama.cpp never runs in a process that has the plugin loaded."""
    measured(runner, CACHED)
    pid = runner.pid
    result = measured(runner, STOCK)
    assert result.load_s > 0
    assert runner.pid != pid


def test_how_weights_lie_in_memory_takes_a_reload(runner: EngineRunner) -> None:
    """A process that has mapped or packed them is not asked to change its mind."""
    for config in (STOCK, replace(STOCK, load_mode=LoadMode.NONE), replace(STOCK, repack=False)):
        assert measured(runner, config).load_s > 0


def test_killed_worker_costs_its_trial_only(runner: EngineRunner) -> None:
    """kill -9 in the middle of a trial is a typed failure; the next trial runs."""
    measured(runner, STOCK)
    long = replace(TRACE, reply_tokens=tuple([7] * 190))
    pid = runner.pid
    assert pid is not None
    killer = threading.Timer(0.05, os.kill, (pid, signal.SIGKILL))
    killer.start()
    results = [runner.measure(STOCK, long, passes=200, time_limit_s=60)]
    killer.join()
    assert isinstance(results[0], Failed)
    assert results[0].reason is FailureReason.CRASHED
    assert "SIGKILL" in results[0].detail
    measured(runner, STOCK)


def test_stopped_worker_is_a_hang_within_the_time_limit(runner: EngineRunner) -> None:
    """A process that answers nothing is given up when its time is over, and is gone afterwards."""
    measured(runner, STOCK)
    pid = runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    result = runner.measure(STOCK, TRACE, passes=1, time_limit_s=1.0)
    assert isinstance(result, Failed)
    assert result.reason is FailureReason.HUNG
    assert time.monotonic() - start < 10
    assert not psutil.pid_exists(pid)
    measured(runner, STOCK)


def test_refused_device_memory_is_out_of_memory(model: Path) -> None:
    """A placement larger than the fast tier fails as such, and a smaller one runs afterwards."""
    emulated = parse_emulated("desktop,vram_mib=4,scale=1")
    with EngineRunner(model, emulated) as runner:
        everything = replace(STOCK, device="EMU0", gpu_layers=99)
        result = runner.measure(everything, TRACE, passes=1, time_limit_s=60)
        assert isinstance(result, Failed)
        assert result.reason is FailureReason.OUT_OF_MEMORY
        measured(runner, STOCK)


def test_slots_that_do_not_fit_become_fewer(model: Path) -> None:
    """The cache takes what room there is instead of failing, and says how many slots it holds."""
    emulated = parse_emulated("desktop,vram_mib=4,scale=1")
    with EngineRunner(model, emulated) as runner:
        config = replace(STOCK, device="EMU0", gpu_layers=99, ram_expert_layers=99, n_ubatch=16)
        result = measured(runner, replace(config, cache=CacheKnobs(slots=16)))
        assert 0 < result.slots < 16
        assert result.fast_bytes <= 4 * 2**20


def test_prompts_longer_than_a_micro_batch_run_with_the_cache_switched_on_live(runner: EngineRunner) -> None:
    """All but the last micro-batch ask for no output: the last layer's FFN then has no tokens, and must not be ours."""
    trace = replace(TRACE, depth_tokens=tuple(range(1, 101)), prompt_tokens=tuple(range(40, 90)))
    result = measured(runner, replace(CACHED, n_ubatch=32), trace)
    assert result.counters is not None
    assert result.counters.hits > 0


def test_broken_model_file_is_a_load_failure(model: Path, tmp_path: Path) -> None:
    """A truncated file fails with llama.cpp's own words."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:20_000])
    with EngineRunner(broken) as runner:
        result = runner.measure(STOCK, TRACE, passes=1, time_limit_s=60)
    assert isinstance(result, Failed)
    assert result.reason is FailureReason.LOAD_FAILED
    assert result.detail


def test_trace_longer_than_the_context_is_refused(runner: EngineRunner) -> None:
    """A request that cannot be right leaves the worker usable."""
    result = runner.measure(replace(STOCK, n_ctx=64), TRACE, passes=1, time_limit_s=60)
    # llama.cpp rounds contexts up to 256
    assert isinstance(result, Measurement)
    too_long = replace(TRACE, reply_tokens=tuple([7] * 600))
    result = runner.measure(STOCK, too_long, passes=1, time_limit_s=60)
    assert isinstance(result, Failed)
    assert result.reason is FailureReason.REFUSED
    assert "positions" in result.detail


def test_worker_dies_with_its_parent(runner: EngineRunner) -> None:
    """Closing the runner leaves no process behind."""
    measured(runner, STOCK)
    pid = runner.pid
    assert pid is not None
    runner.close()
    assert not psutil.pid_exists(pid)


def test_greedy_text_is_the_same_with_and_without_the_cache(runner: EngineRunner) -> None:
    """The stream ends with statistics, and the cache changes no token."""
    request = GenerationRequest("Once upon a time", max_tokens=24)
    texts = []
    for config in (replace(STOCK, repack=False), CACHED):
        items = list(runner.generate(config, request, time_limit_s=60))
        assert isinstance(items[-1], GenerationStats)
        assert items[-1].n_reply <= 24
        texts.append("".join(item.text for item in items if isinstance(item, TextChunk)))
    assert texts[0] == texts[1]
    assert texts[0]


def test_prompt_longer_than_the_context_is_an_error_with_a_remedy(runner: EngineRunner) -> None:
    """The user is told the numbers."""
    with pytest.raises(MoetuneError, match="tokens") as caught:
        list(runner.generate(STOCK, GenerationRequest("word " * 4000, max_tokens=4), time_limit_s=60))
    assert caught.value.code is ExitCode.ENGINE


def test_tokens_come_without_loading_the_weights(runner: EngineRunner) -> None:
    """Byte-level text survives, and special tokens are not added."""
    assert len(runner.tokenize("ab")) == 2
    assert runner.tokenize("") == ()


def test_many_trials_do_not_grow_the_worker(runner: EngineRunner) -> None:
    """Memory after 40 trials is what it was after 10."""
    short = Trace("short", (), (1, 2, 3, 4), (5, 6, 7, 8), ())
    sizes = []
    for trial in range(40):
        knobs = CacheKnobs(slots=1 + trial % 16, interval_tokens=1)
        measured(runner, replace(CACHED, cache=knobs, n_ctx=256 * (1 + trial % 2)), short)
        sizes.append(psutil.Process(runner.pid).memory_info().rss)
    assert sizes[-1] < sizes[9] * 1.15 + 8 * 2**20
