"""docs/verdict.md explains every verdict, standing and reason there can be, and its examples are what is printed."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from moetune.autotune import baselines, race, reasons, space
from moetune.autotune.baselines import BEST_OFFLOAD, EXPERTS_IN_RAM
from moetune.autotune.quality import QualityFigures, QualityLevel, judge_quality
from moetune.autotune.race import Standing
from moetune.autotune.sequential import Interval
from moetune.autotune.verdict import Verdict, VerdictKind
from moetune.autotune.words import describe
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.divergence import Divergence
from moetune.hardware import conditions
from moetune.profiles.schema import Figures

PAGE = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
EXPLAINED = [row.split(" | ") for row in PAGE.splitlines() if row.startswith("| `")]
HEADINGS = [line for line in PAGE.splitlines() if line.startswith("#")]


class Texts(ast.NodeVisitor):
    """Collects what a piece of code may say, as patterns: what it fills in is open. Docstrings are for others."""

    def __init__(self) -> None:
        self.patterns: list[str] = []

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._add([part.value if isinstance(part, ast.Constant) else None for part in node.values])

    def visit_Constant(self, node: ast.Constant) -> None:
        self._add([node.value])

    def _add(self, parts: list[object]) -> None:
        said = [part for part in parts if isinstance(part, str)]
        if len("".join(said).split()) > 1:
            self.patterns.append("".join(re.escape(part) if isinstance(part, str) else "[^`]*" for part in parts))


def texts_of(module: object, *functions: str) -> list[str]:
    """Of these functions, or of all there are."""
    found = Texts()
    for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef) and (not functions or node.name in functions):
            found.visit(ast.Module(node.body, []))
    return found.patterns


def is_explained(pattern: str) -> bool:
    """Whether a table's row begins with it and goes on with something."""
    return any(re.search(f"`{pattern}`", cells[0]) and "".join(cells[1:]).strip(" |") for cells in EXPLAINED)


@pytest.mark.parametrize("kind", VerdictKind)
def test_every_kind_of_verdict_has_a_section(kind: VerdictKind) -> None:
    """Under the word that the profile holds."""
    assert any(f"`{kind}`" in heading for heading in HEADINGS)


@pytest.mark.parametrize("standing", Standing)
def test_every_standing_is_explained(standing: Standing) -> None:
    """A candidate cannot come out in a way that nobody can look up."""
    assert is_explained(re.escape(standing))


@pytest.mark.parametrize("pattern", texts_of(reasons))
def test_every_reason_is_explained(pattern: str) -> None:
    """What the measurements say about the cache."""
    assert is_explained(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *texts_of(race, "_why_stop", "_run"),
        *texts_of(conditions, "disturbance", "strain", "_foreign_load", "_clock", "_memory", "_gpu"),
        *texts_of(space, "_why_cache_is_idle"),
    ],
)
def test_what_else_a_verdict_may_name_is_explained(pattern: str) -> None:
    """Why the race ended early, what disturbed it, why the cache took no part."""
    assert is_explained(pattern)


def test_the_code_says_something() -> None:
    """Else the tests above would hold whatever the page says."""
    assert len(texts_of(reasons)) >= 7
    assert not is_explained("the moon was [^`]*")


@pytest.mark.parametrize(
    "name", [said for name, said in vars(baselines).items() if name.isupper() and isinstance(said, str)]
)
def test_every_baseline_is_explained(name: str) -> None:
    """Verdicts name them."""
    assert is_explained(re.escape(name))


CACHED = EngineConfig(
    n_ctx=8192,
    n_threads=8,
    n_ubatch=1024,
    device="CUDA0",
    gpu_layers=49,
    ram_expert_layers=48,
    cache=CacheKnobs(slots=44),
)
STOCK = replace(CACHED, ram_expert_layers=21, cache=None)
WIN = Verdict(
    kind=VerdictKind.CACHE_WINS,
    config=CACHED,
    words=describe(CACHED, 48),
    result=Figures(pp_tps=395.0, tg_tps=25.1, turn_s=10.5, hit_rate=0.78, fast_bytes=1),
    baseline=Figures(pp_tps=355.0, tg_tps=17.6, turn_s=14.9, hit_rate=None, fast_bytes=1),
    baseline_name=BEST_OFFLOAD,
    interval=Interval(1.42, 1.31, 1.54, 0.975),
    rival=None,
    rival_figures=None,
    rival_gain=None,
    reasons=("its slots served 78% of the routed experts",),
    cache_idle=None,
    emulated=None,
)
OTHER_WIN = replace(
    WIN,
    kind=VerdictKind.OTHER_SETTING_WINS,
    words=describe(STOCK, 48),
    result=Figures(pp_tps=402.0, tg_tps=19.6, turn_s=13.3, hit_rate=None, fast_bytes=1),
    interval=Interval(1.12, 1.06, 1.19, 0.975),
    reasons=(
        "the best cache served only 31% of the routed experts",
        "14% of generation was one tier waiting for the other",
    ),
)
NONE = replace(WIN, kind=VerdictKind.NO_PROVEN_IMPROVEMENT, reasons=())
STOPPED = replace(NONE, kind=VerdictKind.INTERRUPTED, baseline_name=EXPERTS_IN_RAM)


@pytest.mark.parametrize(
    "verdict",
    [
        WIN,
        OTHER_WIN,
        replace(NONE, interval=Interval(1.06, 0.98, 1.15, 0.95), reasons=("undecided after 12 rounds",)),
        replace(
            NONE,
            baseline_name=EXPERTS_IN_RAM,
            interval=Interval(0.99, 0.97, 1.004, 0.95),
            reasons=("the best cache served only 24% of the routed experts",),
        ),
        replace(NONE, baseline_name=EXPERTS_IN_RAM, interval=None, rival_gain=0.9),
        replace(NONE, baseline_name=EXPERTS_IN_RAM, interval=None),
        STOPPED,
        replace(NONE, kind=VerdictKind.NO_BASELINE),
        replace(NONE, kind=VerdictKind.NOTHING_RAN),
    ],
)
def test_examples_are_what_the_code_prints(verdict: Verdict) -> None:
    """Whole sentences, but for the line breaks."""
    assert verdict.sentence in " ".join(PAGE.split())


def test_the_example_of_a_quality_line_is_what_the_code_prints() -> None:
    """With the page's figures."""
    near = Divergence(4080, 6e-4, 7e-5, 0.0, 0.0, 0.061, 0.2, 0.988, 0.002, 10.0, 10.0)
    deep = replace(near, n_tokens=512, mean=1e-3, mean_error=3e-4, p999=0.14, top1_error=0.005)
    same = replace(near, mean=0.0, mean_error=0.0, p999=0.0, top1=1.0, top1_error=0.0)
    types = (KvType.Q8_0, KvType.Q8_0)
    found, floor = QualityFigures(near, deep), QualityFigures(same, same)
    report = judge_quality(*types, found, floor, QualityLevel.NEAR_LOSSLESS)
    assert f"{report.sentence}." in " ".join(PAGE.split())
