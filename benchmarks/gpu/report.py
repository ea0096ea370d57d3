"""The table and the results file, from what has been measured."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intervals import Interval, blocks, ratio_of_sums
from machine import describe_machine

NAMES = {"ram": "stock, all experts in RAM", "offload": "stock, best -ncmoe", "cache": "hot-expert cache"}
# What the cache is meant to reach where about a quarter of the experts are resident and routing is skewed.
QUARTER = (0.2, 0.3)
BARS = {"ram": 3.2, "offload": 2.3}
KLD_BAR = 1e-4


def write_report(work: Path, results: Path, sources: str) -> Path:
    """Print the table; write it and all raw samples under `results`; return the results file's path.

    Raises FileNotFoundError when nothing has been measured.
    """
    files = sorted((work / "budgets").glob("*.json"), key=lambda file: json.loads(file.read_text())["budget_bytes"])
    budgets = [json.loads(file.read_text()) for file in files]
    if not budgets:
        raise FileNotFoundError(f"nothing has been measured in {work}")
    device = budgets[0]["arms"]["cache"][0]
    emulated = device["device"] == "CPU" or "emulated" in device["description"]
    routing = json.loads((work / "routing.json").read_text())
    figures = [summarise(budget) for budget in budgets]
    text = _text(device, routing, figures, emulated)
    print(text)
    results.mkdir(parents=True, exist_ok=True)
    stem = results / ("gpu-rehearsal" if emulated else f"gpu-{_slug(device['description'])}")
    report = {
        "emulated": emulated,
        "machine": describe_machine(),
        "sources": sources,
        "model": json.loads((work / "model.json").read_text()),
        "routing": routing,
        "figures": figures,
        "budgets": budgets,
    }
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text + "\n")
    return stem.with_suffix(".json")


def summarise(budget: dict[str, Any]) -> dict[str, Any]:
    """Medians and intervals of one budget's arms, and the cache's ratios to the others. Speeds in tokens a second."""
    arms = budget["arms"]
    figures: dict[str, Any] = {"budget_bytes": budget["budget_bytes"], "arms": {}, "logits": budget["logits"]}
    for arm, runs in arms.items():
        cache = [run["cache"] for run in runs if run["cache"]]
        routed = sum(c["hits"] + c["misses"] for c in cache)
        figures["arms"][arm] = {
            "ncmoe": min(runs[0]["placement"]["ram_layers"], runs[0]["layers"]),
            "layout": runs[0]["placement"]["layout"],
            "tg_tps": asdict(_speed([(run["reply_s"], 1) for run in runs])),
            "pp_tps": asdict(_speed([(run["prompt_s"], run["prompt_tokens"]) for run in runs])),
            "vram_bytes": max(run["vram_bytes"] for run in runs),
            "hit_rate": sum(c["hits"] for c in cache) / routed if routed else None,
            "slot_bytes": max((c["slot_bytes"] for c in cache), default=0),
        }
    for other in ("ram", "offload"):
        if other in arms:
            pairs = zip(arms[other], arms["cache"], strict=True)
            figures[f"tg_cache_over_{other}"] = asdict(
                ratio_of_sums([blocks(a["reply_s"], b["reply_s"]) for a, b in pairs])
            )
    figures["resident"] = figures["arms"]["cache"]["slot_bytes"] / arms["cache"][0]["expert_bytes"]
    return figures


def _speed(runs: list[tuple[list[float], int]]) -> Interval:
    """Tokens a second, from seconds for so many tokens each."""
    size = 16 if runs[0][1] == 1 else 1
    return ratio_of_sums([blocks([float(tokens)] * len(seconds), seconds, size) for seconds, tokens in runs])


def _text(device: dict[str, Any], routing: dict[str, Any], figures: list[dict[str, Any]], emulated: bool) -> str:
    label = "  [emulated]" if emulated else ""
    lines = [
        f"{device['device']}: {device['description']}",
        f"{device['layers']} layers of {device['experts']} experts, {device['used']} used; "
        f"{device['expert_bytes'] / 2**30:.3g} GiB of experts; busiest fifth of the experts "
        f"{routing['busiest_fifth']:.0%} of activations, "
        f"{routing['busiest_fifth_within_topic']:.0%} within a topic, {routing['carried_over']:.0%} carried to another",
        "",
    ]
    if emulated:
        lines.insert(0, "EMULATED: no GPU was measured; every figure below describes this computer, not a real device.")
    head = ["budget", "arm", "tg tok/s", "pp tok/s", "hits", "VRAM MiB", "cache / this", "KLD", "same top"]
    rows = [row for budget in figures for row in _rows(budget)]
    lines += _columns([head, *rows])
    lines += ["", *(line + label for budget in figures for line in _verdicts(budget))]
    return "\n".join(lines)


def _rows(budget: dict[str, Any]) -> list[list[str]]:
    rows = []
    for arm, name in NAMES.items():
        if arm not in budget["arms"]:
            continue
        figures = budget["arms"][arm]
        layout = f" {figures['ncmoe']}" if arm == "offload" else ""
        layout += "" if arm == "cache" else f", {figures['layout']}"
        ratio = budget.get(f"tg_cache_over_{arm}")
        logits = budget["logits"].get(arm)
        rows.append(
            [
                f"{budget['budget_bytes'] / 2**30:g} GiB",
                name + layout,
                Interval(**figures["tg_tps"]).show(1),
                Interval(**figures["pp_tps"]).show(0),
                "" if figures["hit_rate"] is None else f"{figures['hit_rate']:.1%}",
                f"{figures['vram_bytes'] / 2**20:.0f}" if figures["vram_bytes"] > 0 else "",
                "" if ratio is None else Interval(**ratio).show(2),
                "" if logits is None else f"{logits['mean_kld']:.1e}",
                "" if logits is None else f"{logits['same_top']}/{logits['positions']}",
            ]
        )
    return rows


def _verdicts(budget: dict[str, Any]) -> list[str]:
    """The bars, where they apply. They inform: this is no test that fails."""
    size = f"{budget['budget_bytes'] / 2**30:g} GiB, {budget['resident']:.0%} of the experts resident"
    lines = []
    if QUARTER[0] <= budget["resident"] <= QUARTER[1]:
        for arm, bar in BARS.items():
            if ratio := budget.get(f"tg_cache_over_{arm}"):
                word = "reached" if ratio["value"] >= bar else "missed"
                lines.append(f"{size}: {ratio['value']:.2f} x {NAMES[arm]}, bar {bar}: {word}")
    cache = budget["logits"]["cache"]["mean_kld"]
    noise = max(budget["logits"][arm]["mean_kld"] for arm in budget["logits"] if arm != "cache")
    word = "reached" if cache < KLD_BAR else "within twice that" if cache <= 2 * noise else "MISSED"
    lines.append(f"{size}: KLD {cache:.1e}, bar {KLD_BAR:.0e}; stock's own arms differ by up to {noise:.1e}: {word}")
    return lines


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [table[0], "  ".join("-" * width for width in widths), *table[1:]]


def _slug(text: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words) or "device"
