"""The hot-expert cache beside stock llama.cpp: every arm a process that stays, blocks interleaved (A B C C B A).

On emulated machines (fast card on a desktop board, small card, server) with three routings each, arms are: stock
llama.cpp with all experts in RAM in its best layout; stock with the best layer offload that takes no more fast-tier
memory than the cache's slots; the cache; and, for the bound, stock with everything on the device. On this computer's
CPU: the plugin asked for no slots, and the CPU as its own fast tier, both in fresh processes every round.

Ratios are medians over blocks with bootstrap intervals; raw samples go into --json. Exit status 1 when a bar is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from engine_arm import Arm, Block, Sample
from engine_cases import LAYERS, MACHINES, N_EXPERT, PROMPT_TOKENS, RESIDENT, ROUTINGS, Machine, Text, spec_of
from numpy.typing import NDArray
from scipy.stats import bootstrap
from tabulate import tabulate

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import PRESETS
from moetune.engine.model import read_model
from moetune.engine.routing_pass import WorkloadTokens, record
from moetune.engine.routing_replay import optimal_hits
from moetune.engine.runner import EngineRunner
from moetune.hardware.probe import read_machine

RAM, OFFLOAD, CACHE, DEVICE = "experts in RAM", "layer offload", "cache", "all on the device"
BEST, NO_SLOTS, PLAIN, RESIDENT_CPU, AGAIN = (
    "stock",
    "plugin, 0 slots",
    "stock, plain layout",
    "all resident",
    "stock again",
)
CACHE_WARMUP_TOKENS = 192
BLOCK_WARMUP_TOKENS = 4


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval, and the bar it has to reach (at least, or at most with `ceiling`)."""

    case: str
    name: str
    value: float
    low: float
    high: float
    bar: float | None = None
    ceiling: bool = False

    @property
    def missed(self) -> bool:
        """Whether there is a bar and the value is on the wrong side of it."""
        return self.bar is not None and (self.value > self.bar if self.ceiling else self.value < self.bar)

    @property
    def row(self) -> list[str]:
        """For the table."""
        bar = "" if self.bar is None else f"{'<=' if self.ceiling else '>='} {self.bar:g}"
        return [self.case, self.name, f"{self.value:.3f}", f"{self.low:.3f}-{self.high:.3f}", bar + " !" * self.missed]


class ArmProcess:
    """A running arm."""

    def __init__(self, arm: Arm) -> None:
        read_end, write_end = os.pipe()
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        program = [
            sys.executable,
            str(Path(__file__).with_name("engine_arm.py")),
            json.dumps(asdict(arm)),
            str(write_end),
        ]
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stderr=self._words, pass_fds=(write_end,), text=True
        )
        os.close(write_end)
        self._answers = os.fdopen(read_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._answers.close()
        self._words.close()

    def measure(self, block: Block) -> Sample:
        """One block; a failure of the arm ends the benchmark."""
        assert self._process.stdin is not None  # noqa: S101  # a pipe by construction
        try:
            self._process.stdin.write(json.dumps(asdict(block)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is reported below, with its own words
        answer = self._answers.readline()
        if not answer:
            self._process.communicate()
            self._words.seek(0)
            words = self._words.read().strip()
            sys.exit(f"an arm ended: {words.splitlines()[-1] if words else 'without a word'}")
        return Sample(**json.loads(answer))


def main() -> int:
    """Measure, print every figure beside its bar, write raw samples and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", action="append", choices=[*MACHINES, "none"], help="default: all")
    parser.add_argument("--routing", action="append", choices=list(ROUTINGS), help="default: all")
    parser.add_argument("--blocks", type=int, default=8, help="interleaved blocks an arm (default: 8)")
    parser.add_argument("--tokens", type=int, default=40, help="timed tokens a block (default: 40)")
    parser.add_argument("--rounds", type=int, default=12, help="fresh processes of the CPU arms; 0 leaves them out")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU arms (default: 2)")
    parser.add_argument("--json", type=Path, help="write figures and all raw samples here")
    parser.add_argument("--figure", type=Path, help="draw the emulated machines' speeds here (needs matplotlib)")
    args = parser.parse_args()

    figures: list[Figure] = []
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for machine in [name for name in args.machine or MACHINES if name in MACHINES]:
            for routing in args.routing or ROUTINGS:
                case = f"{machine}, {routing}"
                samples, facts = measure_case(Path(folder), MACHINES[machine], routing, args.blocks, args.tokens)
                raw[case] = {**facts, "samples": {arm: [asdict(s) for s in of_arm] for arm, of_arm in samples.items()}}
                figures += figures_of(case, machine, routing, samples, facts)
                show(figures)
        if args.rounds:
            rounds = cpu_rounds(Path(folder), args.rounds, args.tokens, args.threads)
            raw["this CPU"] = {"threads": args.threads, "rounds_tps": rounds}
            figures += cpu_figures(rounds)
    show(figures)
    if args.json:
        report = {"machine": read_machine(None).label, "figures": [asdict(f) for f in figures], "raw": raw}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.figure:
        draw(raw, args.figure)
    missed = [f for f in figures if f.missed]
    for figure in missed:
        print(f"missed: {figure.case}: {figure.name}: {figure.value:.3f}, bar {figure.bar:g}")
    return 1 if missed else 0


def show(figures: Sequence[Figure]) -> None:
    """The table so far."""
    print(tabulate([f.row for f in figures], headers=["case", "figure", "value", "95 %", "bar"], disable_numparse=True))
    print(flush=True)


def measure_case(
    folder: Path, machine: Machine, routing: str, n_blocks: int, n_tokens: int
) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
    """Samples of every arm block by block, and what the bounds need to know. All emulated."""
    spec = spec_of(machine, routing)
    path = folder / "model.gguf"
    write_synthetic(path, spec)
    text = Text(routing, spec.vocab, spec.topics)
    prompt = text.tokens(PROMPT_TOKENS)
    blocks = [Block(prompt, text.tokens(BLOCK_WARMUP_TOKENS), text.tokens(n_tokens)) for _ in range(n_blocks)]
    long_warmup = Block(prompt, text.tokens(CACHE_WARMUP_TOKENS), text.tokens(BLOCK_WARMUP_TOKENS))
    short_warmup = Block(prompt, [], text.tokens(BLOCK_WARMUP_TOKENS))

    arms = arms_of(machine, path)
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    processes = {name: ArmProcess(arm) for name, arm in arms.items()}
    try:
        for name, process in processes.items():
            process.measure(long_warmup if name == CACHE else short_warmup)
        for i, block in enumerate(blocks):
            for name in list(arms) if i % 2 == 0 else reversed(list(arms)):
                samples[name].append(processes[name].measure(block))
    finally:
        for process in processes.values():
            process.__exit__()
    expert_bytes = read_model(path).layers[0].expert_bytes
    facts = {
        "emulated": machine.text,
        "expert_bytes": expert_bytes,
        "expert_bytes_a_token": expert_bytes * spec.used * LAYERS,
        **routing_facts(path, long_warmup, blocks, round(RESIDENT * N_EXPERT)),
        "model": asdict(spec),
    }
    return samples, facts


def arms_of(machine: Machine, path: Path) -> dict[str, Arm]:
    """The arms on one emulated machine, each in its best layout."""
    common = {"n_ctx": 1024, "n_threads": 1, "device": "EMU0", "gpu_layers": LAYERS + 1, "load_mode": "none"}
    in_ram = {**common, "ram_expert_layers": LAYERS}
    # A layer's experts are as large as all of the slots' share of four layers.
    offloaded = round(RESIDENT * LAYERS)
    roomy = Machine(machine.preset, machine.embd, machine.ff, 512)
    slots = str(round(RESIDENT * N_EXPERT))
    return {
        RAM: Arm(str(path), in_ram, machine.text),
        OFFLOAD: Arm(str(path), {**common, "ram_expert_layers": LAYERS - offloaded}, machine.text),
        CACHE: Arm(str(path), {**in_ram, "repack": False}, machine.text, {"slots": slots}),
        DEVICE: Arm(str(path), common, roomy.text),
    }


def routing_facts(path: Path, long_warmup: Block, blocks: Sequence[Block], n_slots: int) -> dict[str, float]:
    """Of the blocks' decoded tokens: Belady's hit rate, from slots that the long warm-up has filled, and the skew."""
    model = read_model(path)
    config = EngineConfig(n_ctx=1024, n_threads=1)
    passes = [
        WorkloadTokens(str(i), tuple(b.prompt + b.warmup + b.reply)) for i, b in enumerate([long_warmup, *blocks])
    ]
    with EngineRunner(path) as runner:
        routing = record(runner, config, model.fingerprint, passes, lambda _: None)
    n_warmup = len(long_warmup.warmup + long_warmup.reply)
    hits = pairs = top = 0
    for layer, routed in enumerate(routing.layers):
        decoded = [workload.ids[layer][PROMPT_TOKENS:] for workload in routing.workloads]
        ids = np.ascontiguousarray(np.concatenate(decoded), np.int32)
        hits += optimal_hits(ids, routed.n_expert, n_slots, n_warmup)
        pairs += ids[n_warmup:].size
        counts = np.sort(np.bincount(ids[n_warmup:].ravel(), minlength=routed.n_expert))
        top += int(counts[-round(0.2 * routed.n_expert) :].sum())
    return {"optimal_hit_rate": hits / pairs, "top_fifth_share": top / pairs}


def figures_of(
    case: str, machine: str, routing: str, samples: Mapping[str, Sequence[Sample]], facts: Mapping[str, Any]
) -> list[Figure]:
    """Everything measured in one case, with the bars that belong to it."""
    reply = {arm: np.array([sum(s.reply_s) / len(s.reply_s) for s in of_arm]) for arm, of_arm in samples.items()}
    prompt = {arm: np.array([s.prompt_s for s in of_arm]) for arm, of_arm in samples.items()}
    cached = samples[CACHE]
    hit_rate = np.array([s.cache["hits"] / max(s.cache["hits"] + s.cache["misses"], 1) for s in cached])
    off = np.array([s.cache["layers_off"] / LAYERS for s in cached])
    stall = np.array([(s.cache["stall_s"] + s.emulator["queue_link_wait_ns"] * 1e-9) / sum(s.reply_s) for s in cached])
    preset = PRESETS[machine]
    device_s = facts["expert_bytes_a_token"] / (preset.device_gbps * preset.scale * 1e9)
    host_s = facts["expert_bytes_a_token"] / (preset.host_gbps * preset.scale * 1e9)
    dense_s = np.median(reply[DEVICE]) - device_s
    bound = dense_s + np.maximum(hit_rate * device_s, (1 - hit_rate) * host_s)
    # Layers follow one another: where one has no miss the host can do nothing, and where it has one the device waits.
    steps = np.array([max(s.cache["steps"], 1) for s in cached])
    whole = np.array([s.cache["whole_steps"] for s in cached]) / steps
    partly_hot = np.maximum(hit_rate - whole, 0.0) * device_s
    by_layer = dense_s + whole * device_s + np.maximum(partly_hot, (1 - hit_rate) * host_s)

    wins = machine != "server" and routing != "flat"
    target = machine == "desktop" and routing == "skewed"
    pays = bool(np.median(off) < 0.5)
    figures = [
        median(
            case, "tg: cache / experts in RAM", reply[RAM] / reply[CACHE], 3.2 if target else None if wins else 0.98
        ),
        median(case, "tg: cache / layer offload", reply[OFFLOAD] / reply[CACHE], 2.3 if target else None),
        median(case, "pp 512: cache / experts in RAM", prompt[RAM] / prompt[CACHE], 1.0 if target else None),
        Figure(case, "activations of the top 20 % of experts", *(facts["top_fifth_share"],) * 3),
        median(case, "hit rate", hit_rate),
        median(case, "layers the guard switched off", off),
    ]
    if pays:
        figures += [
            median(case, "tg: cache / bound", bound / reply[CACHE], 0.85 if target else None),
            median(case, "tg: cache / bound, layer after layer", by_layer / reply[CACHE]),
            median(case, "hit rate / optimal", hit_rate / facts["optimal_hit_rate"], 0.9 if target else None),
            median(case, "promotion stall / tg time", stall, 0.01 if target else None, ceiling=True),
        ]
    return figures


def cpu_rounds(folder: Path, n_rounds: int, n_tokens: int, threads: int) -> list[dict[str, list[float]]]:
    """Tokens a second of every measurement of every arm on this CPU; fresh processes a round, which take turns."""
    path = folder / "cpu.gguf"
    # Experts half as wide as Qwen3-30B-A3B's in either dimension: what a split costs is beside what it computes.
    spec = SyntheticSpec(arch="qwen3moe", layers=8, experts=64, used=8, embd=1024, ff=384, quant="Q4_0", skew=0.9)
    write_synthetic(path, spec)
    plain = {"n_ctx": 512, "n_threads": threads, "load_mode": "none", "repack": False}
    best = {**plain, "repack": True}
    resident = {"slots": "64", "guard": "0", "promotions": "64", "interval": "1", "min_sightings": "1"}
    arms = {
        BEST: Arm(str(path), best),
        NO_SLOTS: Arm(str(path), best, None, {"slots": "0"}),
        AGAIN: Arm(str(path), best),
        PLAIN: Arm(str(path), plain),
        RESIDENT_CPU: Arm(str(path), plain, None, {**resident, "device": "CPU"}),
    }
    rng = np.random.default_rng(1)
    block = Block(
        rng.integers(1, 250, 32).tolist(), rng.integers(1, 250, 8).tolist(), rng.integers(1, 250, n_tokens).tolist()
    )
    warmup = Block(block.prompt, rng.integers(1, 250, 64).tolist(), block.warmup)
    rounds = []
    for _ in range(n_rounds):
        processes = {name: ArmProcess(arm) for name, arm in arms.items()}
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        try:
            for process in processes.values():
                process.measure(warmup)
            for i in range(6):
                for name in list(arms) if i % 2 == 0 else reversed(list(arms)):
                    sample = processes[name].measure(block)
                    if name == RESIDENT_CPU and sample.cache["misses"]:
                        sys.exit("the arm with all experts resident missed some")
                    speeds[name].append(len(sample.reply_s) / sum(sample.reply_s))
        finally:
            for process in processes.values():
                process.__exit__()
        rounds.append(speeds)
    return rounds


def cpu_figures(rounds: Sequence[Mapping[str, Sequence[float]]]) -> list[Figure]:
    """Ratios pair by pair, a median a round."""

    def ratio(arm: str, against: str) -> NDArray[np.float64]:
        return np.array([np.median(np.array(r[arm]) / np.array(r[against])) for r in rounds])

    case = "this CPU"
    return [
        median(case, "tg: 0 slots asked for / stock", ratio(NO_SLOTS, BEST), 0.99),
        median(case, "tg: stock / stock (A/A)", ratio(AGAIN, BEST)),
        median(case, "tg: all resident / stock, plain layout", ratio(RESIDENT_CPU, PLAIN), 0.97),
        median(case, "tg: plain layout / best layout", ratio(PLAIN, BEST)),
    ]


def median(
    case: str, name: str, values: NDArray[np.float64], bar: float | None = None, *, ceiling: bool = False
) -> Figure:
    """The median over blocks or rounds, with a bootstrap interval."""
    interval = bootstrap((values,), np.median, rng=np.random.default_rng(0), method="percentile").confidence_interval
    return Figure(case, name, float(np.median(values)), float(interval.low), float(interval.high), bar, ceiling)


def draw(raw: Mapping[str, Any], path: Path) -> None:
    """Speeds of the arms by case, a bar an arm, every block a dot."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    cases = [case for case in raw if "samples" in raw[case]]
    arms = [RAM, OFFLOAD, CACHE]
    figure, axes = plt.subplots(figsize=(1.5 + 1.35 * len(cases), 4.2), layout="constrained")
    for i, arm in enumerate(arms):
        speeds = [[len(s["reply_s"]) / sum(s["reply_s"]) for s in raw[case]["samples"][arm]] for case in cases]
        in_ram = [
            np.median([len(s["reply_s"]) / sum(s["reply_s"]) for s in raw[case]["samples"][RAM]]) for case in cases
        ]
        at = np.arange(len(cases)) + (i - 1) * 0.27
        bars = axes.bar(at, [np.median(s) / r for s, r in zip(speeds, in_ram, strict=True)], width=0.25, label=arm)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=3)
        for x, of_case, base in zip(at, speeds, in_ram, strict=True):
            axes.plot([x] * len(of_case), np.array(of_case) / base, "k.", markersize=2, alpha=0.5)
    axes.axhline(1.0, color="0.4", linewidth=0.8)
    axes.set_xticks(np.arange(len(cases)), [case.replace(", ", "\n") for case in cases], fontsize=8)
    axes.set_ylabel("tg, relative to experts in RAM (emulated)")
    axes.set_title(
        f"Token generation with {RESIDENT:.0%} of the experts' memory on the fast tier; dots: blocks", fontsize=9
    )
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
