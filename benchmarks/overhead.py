"""What the plugin costs when it holds no slots: tg against stock llama.cpp on the same weight layout.

In every round fresh engine processes stay loaded side by side and take turns (A B B A), so that drift hits all alike;
several rounds, because where a process lands in memory moves its speed by a few percent. The figure is the median over
the rounds' median ratios, with a bootstrap interval over rounds. A third process, stock again, gives the A/A ratio:
what this benchmark shows where there is no difference. Raw samples go into --json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap
from tabulate import tabulate

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import Failed, Trace
from moetune.engine.runner import EngineRunner
from moetune.hardware.probe import read_machine

BAR = 0.98
MODEL = SyntheticSpec(arch="qwen3moe", layers=8, experts=64, used=8, embd=512, ff=256, quant="Q4_0", skew=0.9)
STOCK, PLUGIN, STOCK_AGAIN = "stock", "plugin", "stock again"


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of an arm's tg divided by stock's, with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f}-{self.high:.4f})"


def main() -> int:
    """Print the ratio beside its bar; 1 when it is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="fresh processes (default: 12)")
    parser.add_argument("--pairs", type=int, default=6, help="interleaved measurements a round (default: 6)")
    parser.add_argument("--tokens", type=int, default=48, help="timed tokens a measurement (default: 48)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figure and all raw samples here")
    args = parser.parse_args()

    stock = EngineConfig(n_ctx=512, n_threads=args.threads, repack=False)
    arms = {STOCK: stock, PLUGIN: replace(stock, device="CPU", cache=CacheKnobs(slots=0)), STOCK_AGAIN: stock}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.gguf"
        write_synthetic(path, MODEL)
        size_mb = path.stat().st_size / 1e6
        rounds = [one_round(path, arms, args.pairs, args.tokens) for _ in range(args.rounds)]

    plugin, again = ratio_of(rounds, PLUGIN), ratio_of(rounds, STOCK_AGAIN)
    print(
        f"{MODEL.arch}, {size_mb:.0f} MB; {args.rounds} x {args.pairs} x {args.tokens} tokens, {args.threads} threads"
    )
    speed = {name: np.median([samples[name] for samples in rounds]) for name in arms}
    rows = [
        ["stock tg, tok/s (median)", f"{speed[STOCK]:.1f}", ""],
        ["plugin without slots tg, tok/s (median)", f"{speed[PLUGIN]:.1f}", ""],
        ["plugin / stock (95 % interval)", str(plugin), f">= {BAR}"],
        ["stock / stock, A/A (95 % interval)", str(again), ""],
    ]
    print(tabulate(rows, headers=["figure", "measured", "bar"], disable_numparse=True))
    if args.json:
        report = {
            "machine": read_machine(None).label,
            "bar": BAR,
            "plugin": vars(plugin),
            "stock_again": vars(again),
            "model_mb": size_mb,
        }
        args.json.write_text(json.dumps({**report, "threads": args.threads, "rounds_tps": rounds}, indent=1) + "\n")
    if plugin.median < BAR:
        print(f"missed: {plugin.median:.4f} < {BAR}")
        return 1
    return 0


def one_round(path: Path, arms: dict[str, EngineConfig], pairs: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second of every measurement of every arm, in fresh processes that take turns."""
    rng = np.random.default_rng(1)
    prompt, reply = (tuple(rng.integers(1, 250, n).tolist()) for n in (32, tokens + 8))
    trace = Trace("random", (), prompt, reply, 8)
    runners = {name: EngineRunner(path) for name in arms}
    samples: dict[str, list[float]] = {name: [] for name in arms}
    try:
        for name, runner in runners.items():
            tg_tps(runner, arms[name], trace)  # loads and warms up
        for pair in range(pairs):
            for name in list(arms) if pair % 2 == 0 else reversed(list(arms)):
                samples[name].append(tg_tps(runners[name], arms[name], trace))
    finally:
        for runner in runners.values():
            runner.close()
    return samples


def ratio_of(rounds: Sequence[dict[str, list[float]]], arm: str) -> Ratio:
    """The arm against stock, pair by pair."""
    medians = np.array([np.median(np.array(samples[arm]) / np.array(samples[STOCK])) for samples in rounds])
    interval = bootstrap((medians,), np.median, rng=np.random.default_rng(0)).confidence_interval
    return Ratio(float(np.median(medians)), float(interval.low), float(interval.high))


def tg_tps(runner: EngineRunner, config: EngineConfig, trace: Trace) -> float:
    """Tokens a second of one measurement; a failure ends the benchmark."""
    result = runner.measure(config, trace, passes=1, time_limit_s=300)
    if isinstance(result, Failed):
        sys.exit(f"{result.reason}: {result.detail}")
    return result.tg_tps


if __name__ == "__main__":
    sys.exit(main())
