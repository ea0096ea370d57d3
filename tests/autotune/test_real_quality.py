"""The quality gate on the demo model and the real engine, beside an emulated accelerator that is nearly full."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from world import request_for

from moetune.autotune.quality import QualityLevel
from moetune.autotune.quality_gate import open_gate
from moetune.demo import demo_model_path
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.emulator import parse_emulated
from moetune.engine.measurement import Measurement, Trace
from moetune.engine.model import read_model
from moetune.engine.runner import EngineRunner
from moetune.profiles.workload import load_workload

CACHED = EngineConfig(
    n_ctx=768,
    n_threads=1,
    n_ubatch=128,
    device="EMU0",
    gpu_layers=5,
    ram_expert_layers=4,
    cache=CacheKnobs(slots=6),
    repack=False,
)
TEXT = "\n".join(load_workload("code").texts)[:6000]


@pytest.fixture(scope="module")
def runner() -> Iterator[EngineRunner]:
    """The demo model beside an accelerator that holds its dense part and some slots; fast, so that tests are."""
    with EngineRunner(demo_model_path(), parse_emulated("desktop,vram_mib=8,scale=1")) as running:
        yield running


def test_types_are_judged_where_they_would_run(runner: EngineRunner, tmp_path: Path) -> None:
    """8 bits pass and 4 do not; nothing is loaded anew for the second pair; what was measured is remembered."""
    request = request_for(tmp_path, n_ctx=768, quality_text=TEXT, kv_types=tuple(KvType), quality=QualityLevel.OK)
    notes: list[str] = []
    model = read_model(demo_model_path())
    gate = open_gate(request, model, runner, notes.append)
    eight = gate.admits(replace(CACHED, type_k=KvType.Q8_0, type_v=KvType.Q8_0))
    pid = runner.pid
    four = gate.admits(replace(CACHED, type_k=KvType.Q4_0, type_v=KvType.Q4_0))
    assert runner.pid == pid
    assert eight.passed, eight.sentence
    assert eight.figures is not None and four.figures is not None and eight.floor is not None
    assert eight.figures.at_depth is not None and four.figures.at_depth is not None
    assert 0 < eight.figures.in_chunks.mean < four.figures.in_chunks.mean
    assert 0 < eight.figures.at_depth.mean < four.figures.at_depth.mean
    assert eight.floor.in_chunks.mean < eight.figures.in_chunks.mean
    again = open_gate(request, model, runner, notes.append).admits(
        replace(CACHED, type_k=KvType.Q4_0, type_v=KvType.Q4_0)
    )
    assert again == four
    assert sum(note.startswith("Measuring") for note in notes) == 2


def test_a_base_too_large_for_the_device_is_computed_from_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that just holds all layers with an 8-bit KV cache cannot hold them with f16."""
    request = request_for(tmp_path, n_ctx=2048, quality_text=TEXT, quality=QualityLevel.OK)
    types = {"type_k": KvType.Q8_0, "type_v": KvType.Q8_0}
    full = replace(CACHED, n_ctx=2048, cache=None, ram_expert_layers=0, **types)  # type: ignore[arg-type]
    trace = Trace("short", (), (1, 2, 3, 4), (5, 6, 7, 8), ())
    with EngineRunner(demo_model_path(), parse_emulated("desktop,vram_mib=12,scale=1")) as runner:
        assert isinstance(runner.measure(full, trace, passes=1, time_limit_s=60), Measurement)
        asked: list[EngineConfig] = []
        score = runner.score

        def spy(base: EngineConfig, *rest: object, **limit: object) -> object:
            asked.append(base)
            return score(base, *rest, **limit)  # type: ignore[arg-type]

        monkeypatch.setattr(runner, "score", spy)
        report = open_gate(request, read_model(demo_model_path()), runner, print).admits(full)
    assert (asked[0].gpu_layers, asked[-1].gpu_layers) == (5, 0)
    assert report.figures is not None
    assert report.figures.at_depth is not None
