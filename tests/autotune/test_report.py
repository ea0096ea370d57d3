"""What a person reads: the verdict's sentence, the table, the progress."""

import io
import re
from dataclasses import replace

import pytest
from fake_runner import Landscape
from rich.console import Console
from world import gpu, machine_with, moe_model, runner_for, still

from moetune.autotune.display import Display
from moetune.autotune.request import SearchRequest
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.sequential import Interval
from moetune.autotune.table import WIDTH, result_table
from moetune.autotune.verdict import Verdict, VerdictKind
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import FailureReason
from moetune.profiles.schema import Figures

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
FAST = Figures(pp_tps=300.0, tg_tps=40.0, turn_s=3.1, hit_rate=0.8, fast_bytes=500 << 20)
SLOW = Figures(pp_tps=200.0, tg_tps=25.0, turn_s=4.4, hit_rate=None, fast_bytes=500 << 20)
WIN = Verdict(
    kind=VerdictKind.CACHE_WINS,
    config=EngineConfig(n_ctx=512, n_threads=4, cache=CacheKnobs(slots=12)),
    words="12 slots",
    result=FAST,
    baseline=SLOW,
    baseline_name="stock, best layer offload",
    interval=Interval(1.42, 1.38, 1.47, 0.95),
    rival=None,
    rival_figures=None,
    rival_gain=1.4,
    reasons=(),
    cache_idle=None,
    emulated=None,
)
LOSS = replace(
    WIN,
    kind=VerdictKind.NO_PROVEN_IMPROVEMENT,
    baseline_name="stock, experts in RAM",
    interval=Interval(0.99, 0.97, 1.01, 0.95),
)


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            WIN,
            "The best configuration (12 slots) is 1.42× as fast as the best baseline (stock, best layer offload): "
            "3.1 s instead of 4.4 s a turn, 95 % interval 1.38–1.47.",
        ),
        (LOSS, "Nothing beat stock, experts in RAM: the best candidate measured 0.99× (0.97–1.01)."),
        (
            replace(LOSS, reasons=("a", "b")),
            "Nothing beat stock, experts in RAM: the best candidate measured 0.99× (0.97–1.01), because a; b.",
        ),
        (
            replace(LOSS, interval=Interval(1.30, 0.80, 2.10, 0.95), cache_idle="the model is dense"),
            "Nothing beat stock, experts in RAM: the best candidate measured 1.30× (0.80–2.10), too uncertain to "
            "count. The cache took no part: the model is dense.",
        ),
        (
            replace(LOSS, interval=None, rival_gain=0.9),
            "Nothing beat stock, experts in RAM: the best other configuration measured 0.90× in its trial.",
        ),
        (
            replace(LOSS, interval=None, rival_gain=None),
            "Nothing beat stock, experts in RAM: no other configuration was measured.",
        ),
        (
            replace(LOSS, emulated="an emulated card"),
            "Nothing beat stock, experts in RAM: the best candidate measured 0.99× (0.97–1.01). "
            "(Emulated: an emulated card; no real device was measured.)",
        ),
    ],
)
def test_the_sentence_says_what_was_measured(verdict: Verdict, sentence: str) -> None:
    """One sentence, with the figures and their interval."""
    assert verdict.sentence == sentence


@pytest.mark.parametrize("kind", VerdictKind)
def test_only_a_proven_win_claims_one(kind: VerdictKind) -> None:
    """No other kind says "as fast as the best baseline"."""
    verdict = replace(WIN, kind=kind)
    assert ("as fast as the best baseline" in verdict.sentence) == verdict.proven


def finished(request: SearchRequest, landscape: Landscape) -> SearchResult:
    with Display(Console(file=io.StringIO()), MODEL.n_layers, emulated=False) as display:
        return search(request, runner_for(MACHINE, MODEL, landscape), MACHINE, MODEL, display, still)


def test_the_table_has_every_baseline_and_the_best(request_: SearchRequest) -> None:
    """Aligned, at most 80 columns, with the figures of each; a stock trial only where it beat the named ones."""
    table = result_table(finished(request_, Landscape(noise=0.01)))
    lines = table.splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    rows = lines[2 : lines.index(next(line for line in lines if line.startswith("best found (proven): ")))]
    names = [re.split(r"  +", row)[0] for row in rows]
    assert [name for name in names if name != "stock, best found"] == [
        "stock, experts in RAM",
        "cache off",
        "stock, all on the CPU",
        "stock, best layer offload",
        "stock, tuned alike",
        "best found (proven)",
    ]
    assert len({len(row) for row in rows}) == 1
    assert re.search(r"\d\d%", rows[-1])


def test_the_table_says_why_a_baseline_has_no_figures(request_: SearchRequest) -> None:
    """A failed one is a row and a reason, cut to the width."""
    broken = Landscape(broken=lambda c: FailureReason.CRASHED if c.cache and not c.cache.slots else None)
    table = result_table(finished(request_, broken))
    assert re.search(r"^cache off +failed", table, re.MULTILINE)
    assert "cache off: engine process crashed" in table
    assert all(len(line) <= WIDTH for line in table.splitlines())


def test_progress_is_plain_lines_where_there_is_no_terminal(request_: SearchRequest) -> None:
    """A count and a figure a trial, in lines that fit, no control characters, and "emulated" beside every figure."""
    out = io.StringIO()
    with Display(Console(file=out, width=200), MODEL.n_layers, emulated=True) as display:
        search(request_, runner_for(MACHINE, MODEL, Landscape()), MACHINE, MODEL, display, still)
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("trials [") for line in lines) >= request_.n_trials
    assert all("(emulated)" in line for line in lines if "s a turn" in line)
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in out.getvalue()


def test_progress_on_a_terminal_shows_trial_best_and_time_left(request_: SearchRequest) -> None:
    """The live line names all three."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Display(console, MODEL.n_layers, emulated=False) as display:
        search(request_, runner_for(MACHINE, MODEL, Landscape()), MACHINE, MODEL, display, still)
    text = out.getvalue()
    assert re.search(r"trials \d+ of \d+", text)
    assert "best layer offload (not proven yet)" in text
    assert "left" in text
