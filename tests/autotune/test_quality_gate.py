"""The gate between a fast KV type and the verdict: levels, what is measured when, and what is remembered."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner, Landscape
from world import WORKLOAD, gpu, machine_with, moe_model, request_for, runner_for

from moetune.autotune.quality import QualityFigures, QualityLevel, QualityReport, judge_quality
from moetune.autotune.quality_gate import QualityGate, open_gate
from moetune.autotune.quality_text import CHUNK_TOKENS, MOST_CHUNKS, QualityText, quality_text
from moetune.autotune.request import SearchRequest
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.divergence import Divergence
from moetune.engine.measurement import FailureReason
from moetune.errors import ExitCode, MoetuneError

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
F16 = EngineConfig(n_ctx=2048, n_threads=4, device="CUDA0", gpu_layers=9)
Q8 = replace(F16, type_k=KvType.Q8_0, type_v=KvType.Q8_0)
SAME = Divergence(4080, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10.0, 10.0)
NO_FLOOR = QualityFigures(SAME, None)


def figures(mean: float, top1: float, n: int = 4080, at_depth: Divergence | None = None) -> QualityFigures:
    found = replace(SAME, n_tokens=n, mean=mean, mean_error=2 * mean / n**0.5, top1=top1)
    return QualityFigures(found, at_depth)


def judged(level: QualityLevel, found: QualityFigures, floor: QualityFigures = NO_FLOOR) -> QualityReport:
    return judge_quality(KvType.Q8_0, KvType.Q8_0, found, floor, level)


@pytest.mark.parametrize(
    ("mean", "top1", "level", "passed", "reason"),
    [
        (0.001, 0.991, QualityLevel.NEAR_LOSSLESS, True, "inside near-lossless"),
        (0.011, 0.991, QualityLevel.NEAR_LOSSLESS, False, "mean KLD above 0.01"),
        (0.001, 0.965, QualityLevel.NEAR_LOSSLESS, False, "same top token below 97%"),
        (0.0099, 0.991, QualityLevel.NEAR_LOSSLESS, False, "too close to tell from 4,080 tokens"),
        (0.001, 0.971, QualityLevel.NEAR_LOSSLESS, False, "too close to tell from 4,080 tokens"),
        (0.011, 0.965, QualityLevel.OK, True, "inside ok"),
        (0.031, 0.965, QualityLevel.OK, False, "mean KLD above 0.03"),
        (0.011, 0.935, QualityLevel.OK, False, "same top token below 94%"),
    ],
)
def test_a_level_bounds_divergence_and_agreement(
    mean: float, top1: float, level: QualityLevel, passed: bool, reason: str
) -> None:
    """Both must be inside, and by more than their errors."""
    report = judged(level, figures(mean, top1))
    assert report.passed is passed
    assert reason in report.reason


def test_more_tokens_make_sure() -> None:
    """The same figures pass where they rest on enough text."""
    assert not judged(QualityLevel.NEAR_LOSSLESS, figures(0.0098, 0.98)).passed
    assert judged(QualityLevel.NEAR_LOSSLESS, figures(0.0098, 0.98, n=100_000)).passed


def test_what_is_lost_at_depth_counts() -> None:
    """Good figures in chunks do not excuse bad ones behind a long context."""
    deep = replace(SAME, mean=0.02, mean_error=0.001, top1=0.99)
    report = judged(QualityLevel.NEAR_LOSSLESS, figures(0.001, 0.99, at_depth=deep), QualityFigures(SAME, SAME))
    assert (report.passed, report.reason) == (False, "mean KLD at depth above 0.01")


def test_nothing_is_asked_to_be_quieter_than_f16_itself() -> None:
    """Where another micro-batch already changes as much, the types are not to blame."""
    loud = figures(0.02, 0.95)
    assert not judged(QualityLevel.NEAR_LOSSLESS, loud).passed
    assert judged(QualityLevel.NEAR_LOSSLESS, loud, loud).passed
    assert not judged(QualityLevel.NEAR_LOSSLESS, figures(0.02, 0.94), loud).passed


def test_the_sentence_has_figures_errors_tail_and_floor() -> None:
    """Everything a person needs in order to disagree with the level."""
    deep = replace(SAME, mean=0.002, mean_error=0.0001, p999=0.3, top1=0.98, top1_error=0.002)
    report = judged(QualityLevel.OK, figures(0.001, 0.99, at_depth=deep), figures(0.0001, 1.0))
    words = ("KV q8_0 against f16", "0.001", "at depth KLD 0.002", "99.9 %: 0.3", "98.0%", "noise floor KLD 0.0001")
    assert [word for word in words if word not in report.sentence] == []


@dataclass
class Bench:
    """A gate over a fake engine, and what it said."""

    runner: FakeRunner
    request: SearchRequest
    notes: list[str] = field(default_factory=list)

    def gate(self, **changes: object) -> QualityGate:
        request = replace(self.request, **changes)  # type: ignore[arg-type]
        return open_gate(request, MODEL, self.runner, self.notes.append)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return bench_for(tmp_path, Landscape())


def bench_for(folder: Path, landscape: Landscape) -> Bench:
    return Bench(runner_for(MACHINE, MODEL, landscape), request_for(folder))


def test_full_precision_needs_no_measurement(bench: Bench) -> None:
    """f16 is the base, and f32 is cast to it."""
    gate = bench.gate()
    assert gate.admits(F16).passed
    assert gate.admits(replace(F16, type_k=KvType.F32)).passed
    assert bench.runner.scored == []


def test_any_quality_measures_nothing(bench: Bench) -> None:
    """The user's word is enough."""
    gate = bench.gate(quality=QualityLevel.ANY, kv_types=tuple(KvType))
    assert all(gate.admits(replace(F16, type_k=k, type_v=v)).passed for k in KvType for v in KvType)
    assert bench.runner.scored == []


def test_types_are_measured_once_and_only_when_asked_for(bench: Bench) -> None:
    """In chunks and at depth, with the noise floor: two passages, whatever else differs between configurations."""
    gate = bench.gate()
    assert bench.runner.scored == []
    first = gate.admits(Q8)
    assert gate.admits(replace(Q8, n_threads=8, n_ubatch=64)) is first
    assert first.passed
    (base, others, chunks), (_, _, deep) = bench.runner.scored
    assert (base.type_k, base.type_v, base.n_ctx) == (KvType.F16, KvType.F16, CHUNK_TOKENS)
    assert [(o.type_k, o.n_ubatch) for o in others] == [(KvType.Q8_0, 512), (KvType.F16, 256)]
    assert (chunks.n_chunk, chunks.n_scored) == (512, 255)
    assert (deep.n_chunk, deep.n_scored, len(deep.tokens)) == (2048, 512, 2048)
    assert first.floor is not None


def test_figures_are_remembered_and_the_floor_shared(bench: Bench) -> None:
    """Another search reads them, at another level too; another pair measures only itself."""
    first = bench.gate().admits(Q8)
    bench.runner.scored.clear()
    again = bench.gate(quality=QualityLevel.OK).admits(Q8)
    assert bench.runner.scored == []
    assert (again.figures, again.floor) == (first.figures, first.floor)
    bench.gate(kv_types=tuple(KvType)).admits(replace(Q8, type_v=KvType.Q4_0))
    assert [len(others) for _, others, _ in bench.runner.scored] == [1, 1]


@pytest.mark.parametrize("change", ["text", "model", "engine", "context", "device"])
def test_figures_of_something_else_are_not_used(bench: Bench, change: str) -> None:
    """They hold for one model, engine, device, text and context."""
    bench.gate().admits(Q8)
    bench.runner.scored.clear()
    gate, config = bench.gate(), Q8
    match change:
        case "text":
            gate = bench.gate(quality_text="Another text. " * 400)
        case "model":
            gate = open_gate(bench.request, replace(MODEL, fingerprint="model-2"), bench.runner, bench.notes.append)
        case "engine":
            gate = bench.gate(engine_version="engine 2")
        case "context":
            gate = bench.gate(n_ctx=4096)
        case "device":
            config = replace(Q8, device=None, gpu_layers=0)
    gate.admits(config)
    assert bench.runner.scored


@pytest.mark.parametrize("damage", ["truncated", "not json", "another key", "too many bits", "folder"])
def test_damaged_figures_are_measured_again(bench: Bench, damage: str) -> None:
    """A cache may always be lost; what is in it is never believed unseen."""
    gate = bench.gate()
    first = gate.admits(Q8)
    for path in (bench.request.state_dir / "quality").glob("*.json"):
        whole = path.read_text()
        match damage:
            case "truncated":
                path.write_text(whole[: len(whole) // 2])
            case "not json":
                path.write_bytes(b"\xff\x00")
            case "another key":
                path.write_text(whole.replace("model-1", "model-9"))
            case "too many bits":
                content = json.loads(whole)
                content["figures"]["in_chunks"]["mean"] = "nothing"
                path.write_text(json.dumps(content))
            case "folder":
                path.unlink()
                path.mkdir()
    bench.runner.scored.clear()
    report = bench.gate().admits(Q8)
    assert bench.runner.scored
    assert report.figures == first.figures
    assert any("measured again" in note for note in bench.notes) == (damage == "folder")


def test_slots_make_room_for_the_base(bench: Bench) -> None:
    """Scoring keeps the placement, so that nothing is loaded anew, and gives up the slots."""
    bench.gate().admits(replace(Q8, cache=CacheKnobs(slots=12)))
    configs = [config for base, others, _ in bench.runner.scored for config in (base, *others)]
    assert all(c.cache is not None and c.cache.slots == 0 for c in configs)
    assert {(c.device, c.gpu_layers) for c in configs} == {("CUDA0", 9)}


def test_a_base_that_does_not_fit_the_device_is_computed_from_ram(tmp_path: Path) -> None:
    """Quantised types may be what made a configuration fit: f16 then gets another place, not a refusal."""
    land = Landscape(broken=lambda c: FailureReason.OUT_OF_MEMORY if c.gpu_layers else None)
    bench = bench_for(tmp_path, land)
    assert bench.gate().admits(replace(Q8, cache=CacheKnobs(slots=12))).passed
    base, others, _ = bench.runner.scored[-1]
    assert {(c.gpu_layers, c.cache) for c in (base, *others)} == {(0, None)}


def test_types_that_cannot_be_measured_do_not_pass(tmp_path: Path) -> None:
    """The reason is the engine's; nothing is remembered, so that the next search tries again."""
    bench = bench_for(tmp_path, Landscape(broken=lambda c: FailureReason.CRASHED if c.type_k is KvType.Q8_0 else None))
    report = bench.gate().admits(Q8)
    assert (report.passed, report.figures) == (False, None)
    assert "crashed" in report.sentence
    assert not (bench.request.state_dir / "quality").exists()


def test_a_workloads_few_tokens_are_filled_up_with_shipped_texts(bench: Bench) -> None:
    """Its own come first in chunks, and last, where they are scored, at depth."""
    text = quality_text(None, WORKLOAD, 2048, 1000, bench.runner)
    assert len(text.own) == sum(map(len, WORKLOAD.texts)) < CHUNK_TOKENS
    assert len(text.in_chunks.tokens) == MOST_CHUNKS * CHUNK_TOKENS
    assert text.in_chunks.tokens[: len(text.own)] == text.own
    assert text.at_depth is not None
    assert text.at_depth.tokens[-len(text.own) :] == text.own


def test_a_text_of_ones_own_is_used_alone(bench: Bench) -> None:
    """No other text dilutes it, however short it is, as long as it fills a chunk."""
    text = quality_text("x" * CHUNK_TOKENS, WORKLOAD, 2048, 1000, bench.runner)
    assert (text.fill, len(text.in_chunks.tokens)) == ((), CHUNK_TOKENS)
    with pytest.raises(MoetuneError, match="511 tokens; one chunk takes 512") as caught:
        quality_text("x" * (CHUNK_TOKENS - 1), WORKLOAD, 2048, 1000, bench.runner)
    assert caught.value.code is ExitCode.USAGE


def test_what_is_scored_at_depth_stands_there_once() -> None:
    """A text shorter than the context is repeated before it, but not the tokens that are scored."""
    text = QualityText(tuple(range(600)), (), n_ctx=4096, n_vocab=1000)
    deep = text.at_depth
    assert deep is not None
    assert (len(deep.tokens), deep.n_scored) == (4096, 150)
    assert deep.tokens[-600:] == tuple(range(600))
    assert not set(deep.tokens[: -deep.n_scored]) & set(deep.tokens[-deep.n_scored :])


@pytest.mark.parametrize(("n_ctx", "n_vocab"), [(512, 1000), (64, 1000), (4096, 1 << 20)])
def test_small_contexts_and_large_vocabularies_limit_what_is_scored(n_ctx: int, n_vocab: int) -> None:
    """A context of one chunk has no depth; logits of more tokens than RAM may hold are not asked for."""
    text = QualityText(tuple(range(9000)), (), n_ctx, n_vocab)
    assert (text.at_depth is None) == (n_ctx <= CHUNK_TOKENS)
    assert text.in_chunks.n_scored == min(255, n_ctx - 1 - n_ctx // 2, (512 << 20) // 4 // n_vocab)
