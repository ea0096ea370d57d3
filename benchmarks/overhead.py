"""What the plugin costs when it holds no slots: tg against stock llama.cpp on the same weight layout.

Two engine processes stay loaded side by side and take turns (A B B A), so that drift hits both alike. The figure is the
median ratio over the pairs with a bootstrap interval; the raw samples go into --json.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap
from tabulate import tabulate

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.measurement import Failed, Measurement, Trace
from moetune.engine.runner import EngineRunner

BAR = 0.98
MODEL = SyntheticSpec(arch="qwen3moe", layers=8, experts=64, used=8, embd=512, ff=256, quant="Q4_0", skew=0.9)


def main() -> int:
    """Print the ratio beside its bar; 1 when it is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs (default: 40)")
    parser.add_argument("--tokens", type=int, default=48, help="timed tokens a measurement (default: 48)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figure and all raw samples here")
    args = parser.parse_args()

    rng = np.random.default_rng(1)
    trace = Trace("random", (), tuple(rng.integers(1, 250, 32).tolist()), tuple(rng.integers(1, 250, args.tokens + 8).tolist()), 8)
    stock = EngineConfig(n_ctx=512, n_threads=args.threads, repack=False)
    plugin = replace(stock, device="CPU", cache=CacheKnobs(slots=0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.gguf"
        write_synthetic(path, MODEL)
        size_mb = path.stat().st_size / 1e6
        with EngineRunner(path) as a, EngineRunner(path) as b:
            arms = {"stock": (a, stock), "plugin": (b, plugin)}
            for runner, config in arms.values():
                tg_tps(runner, config, trace)  # load and warm up
            samples: dict[str, list[float]] = {"stock": [], "plugin": []}
            for pair in range(args.pairs):
                for name in ("stock", "plugin") if pair % 2 == 0 else ("plugin", "stock"):
                    samples[name].append(tg_tps(*arms[name], trace))

    ratios = np.array(samples["plugin"]) / np.array(samples["stock"])
    interval = bootstrap((ratios,), np.median, rng=np.random.default_rng(0)).confidence_interval
    ratio = float(np.median(ratios))
    print(f"model: {MODEL.arch}, {size_mb:.0f} MB; {args.pairs} pairs of {args.tokens} tokens, {args.threads} threads")
    rows = [
        ["stock tg, tok/s (median)", f"{np.median(samples['stock']):.1f}", ""],
        ["plugin without slots tg, tok/s (median)", f"{np.median(samples['plugin']):.1f}", ""],
        ["ratio (95 % interval)", f"{ratio:.4f} ({interval.low:.4f}-{interval.high:.4f})", f">= {BAR}"],
    ]
    print(tabulate(rows, headers=["figure", "measured", "bar"], disable_numparse=True))
    if args.json:
        report = {"ratio": ratio, "low": float(interval.low), "high": float(interval.high), "bar": BAR}
        args.json.write_text(json.dumps({**report, "model_mb": size_mb, "samples_tps": samples}, indent=1))
    if ratio < BAR:
        print(f"missed: {ratio:.4f} < {BAR}")
        return 1
    return 0


def tg_tps(runner: EngineRunner, config: EngineConfig, trace: Trace) -> float:
    """Tokens a second of one measurement; a failure ends the benchmark."""
    result: Measurement | Failed = runner.measure(config, trace, passes=1, time_limit_s=300)
    if isinstance(result, Failed):
        sys.exit(f"{result.reason}: {result.detail}")
    return result.tg_tps


if __name__ == "__main__":
    sys.exit(main())
