"""What is measured at one budget of the fast tier: stock with all experts in RAM, stock with as many layers' experts on
the device as take the same VRAM, and the cache. Fresh processes take turns, so that drift hits all arms alike."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runs import ALL_LAYERS, LAYOUTS, Bench, Failed, Placement, Run, say

# Equal VRAM means: no more than the cache takes, give or take what an allocator rounds.
TOLERANCE = 1.01
REFERENCE = "reference/ram-plain"


@dataclass(frozen=True)
class Comparison:
    """One budget's arms: runs by arm name, all in the order of measuring; how far each arm's logits lie from those of
    stock llama.cpp with all experts in RAM, in ggml's own layout, which is the one that the cache computes from."""

    budget_bytes: int
    screening: Sequence[Run]
    runs: dict[str, list[Run]]
    logits: dict[str, dict[str, Any]]
    failures: Sequence[str]


def measure_budget(bench: Bench, budget_bytes: int, rounds: int) -> Comparison:
    """Everything at one budget, from earlier results where they are there. Raises Failed."""
    folder = f"{budget_bytes / 2**30:g}GiB"
    failures: list[str] = []
    screened = [_tried(bench, f"screening/ram-{layout}", Placement(ALL_LAYERS, layout), failures) for layout in LAYOUTS]
    layouts = [run for run in screened if run is not None]
    if not layouts:
        raise Failed(f"nothing can be measured in RAM; {failures[-1]}")
    best = max(layouts, key=lambda run: run.tg_tps)
    layers = int(best.data["layers"])
    say(f"best layout in RAM: {best.placement.layout}, {best.tg_tps:.1f} tok/s")

    cache = Placement(ALL_LAYERS, "host", budget_bytes)
    tried = bench.measure(f"{folder}/screening-cache", cache, short=True)
    placements = {"ram": best.placement, "cache": cache}
    offloads = _offloads(bench, folder, best, tried, layers, failures)
    fitting = [run for run in offloads if run.vram_bytes <= tried.vram_bytes * TOLERANCE]
    if fitting:
        placements["offload"] = max(fitting, key=lambda run: run.tg_tps).placement
        say(f"best layer offload in {tried.vram_bytes / 2**20:.0f} MiB: -ncmoe {placements['offload'].ram_layers}")

    runs: dict[str, list[Run]] = {arm: [] for arm in placements}
    for turn in range(rounds):
        for arm in list(placements) if turn % 2 == 0 else reversed(list(placements)):
            name = f"{folder}/{arm}-{turn}"
            runs[arm].append(bench.measure(name, placements[arm], logits=turn == 0))
            say(f"  {runs[arm][-1].tg_tps:.1f} tok/s, prompts {runs[arm][-1].pp_tps:.0f} tok/s")
    bench.measure(REFERENCE, Placement(ALL_LAYERS, "plain"), logits=True)
    logits = {arm: bench.compare(REFERENCE, f"{folder}/{arm}-0") for arm in placements}
    return Comparison(budget_bytes, [*layouts, tried, *offloads], runs, logits, failures)


def save(bench: Bench, comparison: Comparison) -> None:
    """Keep it for the report."""
    file = bench.work / "budgets" / f"{comparison.budget_bytes / 2**30:g}GiB.json"
    file.parent.mkdir(exist_ok=True)
    record = {
        "budget_bytes": comparison.budget_bytes,
        "threads": bench.threads,
        "effort": asdict(bench.effort),
        "screening": [run.record() for run in comparison.screening],
        "arms": {arm: [run.record() for run in runs] for arm, runs in comparison.runs.items()},
        "logits": comparison.logits,
        "failures": list(comparison.failures),
    }
    file.write_text(json.dumps(record, indent=1) + "\n")


def _offloads(bench: Bench, folder: str, ram: Run, cache: Run, layers: int, failures: list[str]) -> Sequence[Run]:
    """Layer offload around what should fit into the cache's VRAM; nothing where the device is the CPU itself."""
    if bench.device == "CPU":
        return []
    room_bytes = cache.vram_bytes - ram.vram_bytes
    computed = layers - max(0, room_bytes) // int(ram.data["expert_layer_bytes"])
    counts = [n for n in (computed - 1, computed, computed + 1) if 0 <= n <= layers]
    tried = (
        _tried(bench, f"{folder}/screening-ncmoe-{n}", Placement(n, ram.placement.layout), failures) for n in counts
    )
    return [run for run in tried if run is not None]


def _tried(bench: Bench, name: str, placement: Placement, failures: list[str]) -> Run | None:
    """A short measurement; what cannot be placed so is noted and left out."""
    try:
        return bench.measure(name, placement, short=True)
    except Failed as failure:
        failures.append(f"{name}: {failure}")
        say(f"left out {failures[-1]}")
        return None
