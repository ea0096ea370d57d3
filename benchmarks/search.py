"""moetune's search beside other tuners' policies on recorded landscapes: trials, engine-seconds, regret, false winners.

Replays what `landscapes.py` recorded (emulated machines, the real engine) with bootstrapped noise: every arm on every
landscape with every seed. Prints a table with its bars; exit status 1 when one is missed.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from landscapes import FOLDER, LANDSCAPES, N_CTX, WORKLOAD, Recording, read
from search_arms import ARMS, TRIALS, Arm, Outcome, World, moetune_alike, moetune_cold, tpe_cold
from tabulate import tabulate

from moetune.autotune.cost import cost_model
from moetune.autotune.trace import shape_for
from moetune.engine.config import EngineConfig
from moetune.engine.measurement import Measurement

SEEDS = 50
GP_SEEDS = 5
WITHIN = 1.03
NEVER = math.inf
COLD, TPE_COLD, ALIKE = "moetune, a process a trial", "TPE, a process a trial", "all alike"
_SPECIAL: dict[str, Arm] = {COLD: moetune_cold, TPE_COLD: tpe_cold, ALIKE: moetune_alike}


@dataclass(frozen=True)
class Score:
    """One arm, landscape and seed. Regrets are ratios of true turn times: to the fastest that a race may name, and to
    the fastest of all. trials: until one within 3 % of the latter was measured, infinite where none was; whether the
    arm knew is what the regrets of its choices say.
    """

    arm: str
    landscape: str
    seed: int
    trials: float
    engine_s: float
    whole_s: float
    regret: float
    regret_of_all: float
    beside_baseline: float | None
    out_of_memory: int
    outside_gate: bool
    named_winner: bool
    regrets: tuple[float, ...]


@dataclass(frozen=True)
class Figure:
    """A measured value and its bar: at most, or at least; None where it has none."""

    name: str
    value: float
    bar: float | None
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.bar is None or bool(self.value <= self.bar if self.at_most else self.value >= self.bar)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Name, value, bar, and whether it is met."""
        if self.bar is None:
            return self.name, f"{self.value:.2f}", "", ""
        return (
            self.name,
            f"{self.value:.2f}",
            f"{'≤' if self.at_most else '≥'} {self.bar:g}",
            "ok" if self.met else "MISSED",
        )


@cache
def world_of(landscape: str) -> World:
    """Read once a process."""
    return World.of(read(landscape))


def score(job: tuple[str, str, int]) -> Score:
    """Run one arm on one landscape with one seed."""
    name, landscape, seed = job
    world = world_of(landscape)
    outcome = (ARMS | _SPECIAL)[name](world, seed)
    return _scored(job, world.recording, outcome)


def _scored(job: tuple[str, str, int], recording: Recording, outcome: Outcome) -> Score:
    best_s = recording.optimum.true_turn_s

    def regret_of(config: EngineConfig | None) -> float:
        return recording.nearest(config).true_turn_s / best_s if config is not None else NEVER

    regrets = tuple(regret_of(step.choice) for step in outcome.steps)
    admitted = (recording.admits(step.measured) and regret_of(step.measured) <= WITHIN for step in outcome.steps)
    hit = next((i for i, within in enumerate(admitted) if within), None)
    beside = regret_of(outcome.chosen) / regret_of(outcome.baseline) if outcome.baseline is not None else None
    return Score(
        *job,
        trials=NEVER if hit is None else hit + 1,
        engine_s=NEVER if hit is None else outcome.steps[hit].engine_s,
        whole_s=outcome.steps[-1].engine_s,
        regret=regret_of(outcome.chosen) * best_s / recording.promotable.true_turn_s,
        regret_of_all=regret_of(outcome.chosen),
        beside_baseline=beside,
        out_of_memory=outcome.out_of_memory,
        outside_gate=outcome.chosen is not None and not recording.admits(outcome.chosen),
        named_winner=outcome.named_winner,
        regrets=regrets,
    )


def figures(scores: Sequence[Score]) -> list[Figure]:
    """The table's rows."""
    ours, cold, tpe, alike = (_of(scores, name) for name in ("moetune", COLD, TPE_COLD, ALIKE))
    # One that never came within 3 % counts as if its next trial would have: what is said of it is a lower bound.
    others = [
        median(min(s.trials, TRIALS + 1) for s in _of(scores, name))
        for name in ARMS
        if name != "moetune" and _of(scores, name)
    ]
    trials, engine_s = median(s.trials for s in ours), median(s.engine_s for s in ours)
    beside = [s.beside_baseline for s in ours if s.beside_baseline is not None]
    return [
        Figure("trials to within 3 % of the optimum, median", trials, 12),
        Figure("the same of the best other arm ÷ moetune's", min(others) / trials, 2, at_most=False),
        Figure("engine-seconds to within 3 % ÷ TPE's, a process a trial", engine_s / _engine_s(tpe), 0.25),
        Figure("the same ÷ moetune's own, a process a trial", engine_s / _engine_s(cold), None),
        Figure("A/A: a winner named when all are alike, %", 100 * np.mean([s.named_winner for s in alike]), 1),
        Figure("chosen worse than the baseline by over 1 %", sum(ratio > 1.01 for ratio in beside), 0),
        Figure("regret of the choice, 95th percentile, %", _high([s.regret for s in ours]), 1),
        Figure("the same to the fastest of all, p10 aside", _high([s.regret_of_all for s in ours]), None),
        Figure("launches out of memory", sum(s.out_of_memory for s in ours), 0),
        Figure("choices outside the quality gate", sum(s.outside_gate for s in ours), 0),
        Figure(
            "cost model before any trial: median error of tg, %",
            100 * median(error for name in dict.fromkeys(s.landscape for s in scores) for error in tg_errors(name)),
            15,
        ),
    ]


def tg_errors(landscape: str) -> list[float]:
    """Of every configuration that runs: how far the speed predicted from probe and routing is from the recorded one."""
    world = world_of(landscape)
    recording = world.recording
    shape = shape_for(WORKLOAD, N_CTX)
    cost = cost_model(recording.model, recording.machine, world.memory, shape, recording.hits)
    errors = []
    for point in recording.points:
        speeds = [start.tg_tps for start in point.starts if isinstance(start, Measurement)]
        if speeds:
            errors.append(abs(cost.predict(point.config).tg_tps / median(speeds) - 1))
    return errors


def _high(regrets: Sequence[float]) -> float:
    return 100 * (float(np.quantile(regrets, 0.95)) - 1)


def _engine_s(scores: Sequence[Score]) -> float:
    """Median; whole runs where they never came within 3 %."""
    return median(s.engine_s if math.isfinite(s.engine_s) else s.whole_s for s in scores)


def _of(scores: Sequence[Score], name: str) -> list[Score]:
    return [entry for entry in scores if entry.arm == name]


def arms_table(scores: Sequence[Score]) -> str:
    """Every arm: medians of trials and seconds, regret."""
    rows = []
    for name in [*ARMS, *_SPECIAL]:
        mine = _of(scores, name)
        if mine and name != ALIKE:
            rows.append(
                (
                    name,
                    _number(median(s.trials for s in mine), f"over {TRIALS}"),
                    _number(median(s.engine_s for s in mine), "never"),
                    _percent(median(s.regret_of_all for s in mine)),
                    _percent(float(np.quantile([s.regret_of_all for s in mine], 0.95))),
                    sum(s.out_of_memory for s in mine) / len(mine),
                )
            )
    headers = ("arm", "trials to 3 %", "engine s", "regret", "95th perc.", "OOM a run")
    return tabulate(rows, headers=headers, colalign=("left", *("right",) * 5), floatfmt=".1f", disable_numparse=True)


def _number(value: float, never: str) -> str:
    return never if math.isinf(value) else f"{value:.1f}"


def _percent(regret: float) -> str:
    return "nothing ran" if math.isinf(regret) else f"{100 * (regret - 1):.1f} %"


Curves = Mapping[str, Mapping[str, Sequence[float]]]


def curves(scores: Sequence[Score]) -> Curves:
    """By landscape and arm: median regret, %, of the best measured after so many trials; flat after the last."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in dict.fromkeys(entry.landscape for entry in scores):
        for arm in ARMS:
            of_arm = [entry.regrets for entry in scores if entry.arm == arm and entry.landscape == name]
            if of_arm:
                filled = [(*curve, *[curve[-1]] * (TRIALS - len(curve)))[:TRIALS] for curve in of_arm]
                middle = 100 * (np.median(np.array(filled), axis=0) - 1)
                found.setdefault(name, {})[arm] = [round(float(regret), 2) for regret in middle]
    return found


def figure(by_landscape: Curves, path: Path) -> None:
    """A panel a landscape."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    width = 4.2 * len(by_landscape) + 1.6
    drawing, panels = plt.subplots(
        1, len(by_landscape), figsize=(width, 3.4), sharey=True, layout="constrained", squeeze=False
    )
    for panel, (landscape, of_arms) in zip(panels[0], by_landscape.items(), strict=True):
        for arm, regrets in of_arms.items():
            panel.plot(range(1, TRIALS + 1), regrets, label=arm, lw=2.2 if arm == "moetune" else 1.2)
        panel.axhline(100 * (WITHIN - 1), color="grey", lw=0.8, ls=":")
        panel.set(title=f"{landscape} (emulated)", xlabel="trials", yscale="symlog", ylim=(0, 300))
    panels[0][0].set_ylabel("median regret, %")
    lines, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(lines, labels, fontsize=8, loc="outside right center")
    drawing.savefig(path, dpi=150)


def run(seeds: int, gp_seeds: int, jobs: int, names: Sequence[str]) -> list[Score]:
    """Every arm that can run, every recorded landscape, every seed; fewer seeds of the Gaussian process, which thinks
    for longer than all others together.
    """
    most = dict.fromkeys([*ARMS, *_SPECIAL], seeds) | {"GP": min(seeds, gp_seeds) if find_spec("torch") else 0}
    work = [(arm, name, seed) for seed in range(seeds) for name in names for arm, n in most.items() if seed < n]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(score, work, chunksize=4))


def report(scores: Sequence[Score]) -> Mapping[str, object]:
    """What goes into --json: figures, and every score without its curve; null where it never came within 3 %."""
    rows = [
        {key: None if value == NEVER else value for key, value in asdict(entry).items() if key != "regrets"}
        for entry in scores
    ]
    found = [asdict(entry) | {"met": entry.met} for entry in figures(scores)]
    return {"figures": found, "curves": curves(scores), "scores": rows}


def main() -> int:
    """Replay, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--gp-seeds", type=int, default=GP_SEEDS, help="of the Gaussian process, which is slow")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write figures and scores here")
    parser.add_argument("--figure", type=Path, help="write the regret curves here (.png)")
    options = parser.parse_args()
    names = [entry.name for entry in LANDSCAPES if (FOLDER / f"{entry.name}.json.gz").exists()]
    if len(names) < len(LANDSCAPES):
        parser.error("not every landscape is recorded: run benchmarks/landscapes.py first, about an hour")
    began_s = time.monotonic()
    scores = run(options.seeds, options.gp_seeds, options.jobs, names)
    print(f"{len(scores)} replayed searches on {', '.join(names)} (emulated), {time.monotonic() - began_s:.0f} s\n")
    print(arms_table(scores), "\n")
    found = figures(scores)
    rows = [entry.row for entry in found]
    print(tabulate(rows, headers=("figure", "measured", "bar", ""), colalign=("left", "right", "right", "left")))
    if options.json:
        options.json.write_text(json.dumps(report(scores), indent=1), encoding="utf-8")
    if options.figure:
        figure(curves(scores), options.figure)
    return int(not all(entry.met for entry in found))


if __name__ == "__main__":
    sys.exit(main())
