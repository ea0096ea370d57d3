"""An hour of everything: `soak.py --minutes 60` decodes with the cache while its settings change, and compares.

One process holds the cache from beginning to end. Each round it decodes random tokens in a new context, with random
settings set between tokens, contexts shifted and reopened, tokens aborted and, on the emulated accelerator, faults;
stock llama.cpp decodes the same tokens in another process. Nothing may differ, and nothing may grow.

Prints what happened as JSON and, on standard error, every round that is not equal bit for bit. Exits with 1 when a
logit differed, or memory grew.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from replayer import Replayer
from scenario import Scenario, Step, kl_divergence

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic

TIERS = {
    "CPU": ("--fast-tier", "CPU"),
    # Slow enough for promotions to be under way while tokens are decoded.
    "EMU0": ("--fast-tier", "EMU0", "--emulated", "desktop,vram_mib=64,scale=0.02"),
}
SETTINGS = {
    "slots": ("0", "1", "2", "5", "8", "16", "32"),
    "bytes": ("0", "300000", "2000000"),
    "policy": ("heat", "lru", "lfru", "static"),
    "interval": ("1", "2", "4", "16"),
    "hysteresis": ("1", "1.25", "3"),
    "promotions": ("0", "1", "2", "8"),
    "min_sightings": ("1", "2", "5"),
    "dwell": ("0", "2", "16"),
    "half_life": ("1", "32", "1000"),
    "spread": ("flat", "coverage"),
    "whole_layers": ("0", "1"),
    "reserve": ("0", "1000000", "auto"),
    "in_flight": ("0", "100000", "64000000"),
    "path": ("auto", "host", "device"),
    "prefill": ("auto", "scheduler", "cold", "stream"),
    "staging": ("auto", "0", "200000"),
    "prefill_heat": ("0", "1"),
    "guard": ("0", "1"),
    "ahead": ("0", "1", "auto"),
}
CONTEXT_TOKENS = 1024
KLD_LIMIT = 1e-4
# Of resident memory over the whole run: it varies by less, a leak of a few pages a round adds up to more.
SETTLING_ROUNDS = 20
MOST_GROWTH_BYTES = 8 << 20


@dataclass
class Tally:
    """What happened so far."""

    rounds: int = 0
    rows: int = 0
    settings_changed: int = 0
    refused_decodes: int = 0
    rounds_not_bit_equal: int = 0
    worst_kld: float = 0.0
    hits: int = 0
    misses: int = 0
    promotions: int = 0
    wrong: list[str] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)

    def growth_bytes(self) -> int:
        """Of the resident memory: the median of the last quarter over that of the second. The first rounds touch
        memory for the first time; a run that hardly has others says nothing.
        """
        quarter = len(self.resident_bytes) // 4
        if quarter < SETTLING_ROUNDS:
            return 0
        second, last = self.resident_bytes[quarter : 2 * quarter], self.resident_bytes[-quarter:]
        return int(statistics.median(last) - statistics.median(second))


def write_models(folder: Path) -> list[str]:
    """The demo model, one with biases, and a mixed one."""
    specs = (
        SyntheticSpec("gpt-oss", layers=3, embd=128, ff=64, quant="Q8_0"),
        SyntheticSpec("qwen3moe", layers=3, embd=256, ff=256, quant="Q4_K", quant_down="Q6_K", quant_odd="Q8_0"),
    )
    paths = [folder / f"{spec.arch}.gguf" for spec in specs]
    for path, spec in zip(paths, specs, strict=True):
        write_synthetic(path, spec)
    return [str(demo_model_path()), *map(str, paths)]


def random_scenario(rng: random.Random, models: list[str], tier: str) -> Scenario:
    """One round: a context of some shape, and steps until it is nearly full."""
    sequences = rng.choice((1, 1, 1, 2, 3, 8))
    dense_on_device = tier != "CPU" and rng.random() < 0.5
    scenario = Scenario(
        rng.choice(models),
        sequences=sequences,
        n_ctx=CONTEXT_TOKENS,
        n_ubatch=rng.choice((31, 32, 64)),
        kv=rng.choice(("f16", "q8_0")),
        dense_on_device=dense_on_device,
        settled=False,
    ).with_cache(**{key: rng.choice(values) for key, values in SETTINGS.items()})
    faults = tier != "CPU" and rng.random() < 0.3
    return Scenario(**{**vars(scenario), "steps": tuple(_steps(rng, sequences, dense_on_device, faults))})


def _steps(rng: random.Random, sequences: int, dense_on_device: bool, faults: bool) -> list[Step]:
    length = rng.choice((8, 20, 40, 70))
    shared = False  # cells of a copied sequence would be shifted with each of their owners
    steps: list[Step] = [("prompt", length)]
    for _ in range(rng.randint(10, 60)):
        for _ in range(rng.randint(0, 4)):
            key = rng.choice(list(SETTINGS))
            steps.append(("set", key, rng.choice(SETTINGS[key])))
        n = rng.randint(1, 12)
        action = rng.randrange(12)
        # A step adds at most 36 tokens to each sequence.
        if action == 0 or (length + 36) * sequences > CONTEXT_TOKENS:
            steps += [("reopen",), ("prompt", 8)]
            length, shared = 8, False
        elif action == 1:
            steps.append(("batch", n))
            length += n
        elif action == 2:
            steps.append(("prompt", 36))
            length += 36
        elif action == 3 and length > 20 and not shared:
            steps.append(("shift", 5))
            length -= 5
        elif action == 4 and length > 20 and not shared:
            steps.append(("rewind", 3))
            length -= 3
        elif action == 5 and sequences > 1:
            steps.append(("copy", 0, sequences - 1))
            shared = True
        elif action == 6:
            steps.append(("drop",))
        elif action == 7 and not dense_on_device:
            steps.append(("abort",))
            length += 1
        else:
            steps += _decoded(rng, n, action, dense_on_device, faults)
            length += n
    return [*steps, ("look",), ("set", "slots", "0"), ("set", "bytes", "0")]


def _decoded(rng: random.Random, n: int, action: int, dense_on_device: bool, faults: bool) -> list[Step]:
    """n tokens, perhaps while something is wrong with the device."""
    fail, refuse, stolen = "EMU_FAIL_GRAPH_EVERY", "EMU_REFUSE_ALLOC_EVERY", "EMU_VRAM_STOLEN_MIB"
    if faults and action == 8:
        return [("fault", fail, 61), ("insist", n, 500), ("fault", fail, 0)]
    # llama.cpp's own buffers on the device could not be had either.
    if faults and action == 9 and not dense_on_device:
        return [("fault", refuse, 2), ("drop",), ("decode", n), ("fault", refuse, 0)]
    if faults and action == 10 and not dense_on_device:
        return [("fault", stolen, rng.choice((40, 60, 64))), ("decode", n), ("fault", stolen, 0)]
    return [("decode", n)]


def play(tally: Tally, scenario: Scenario, stock: Replayer, cached: Replayer, tier: str) -> int:
    """One round; returns the bytes of the device's memory in use at its end, when no slots are left."""
    expected, got = stock(scenario.reference()), cached(scenario)
    tally.rounds += 1
    tally.rows += len(got.logits)
    tally.settings_changed += sum(step[0] == "set" for step in scenario.steps)
    tally.refused_decodes += got.failures
    if got.counters:
        tally.hits += int(got.counters["hits"])
        tally.misses += int(got.counters["misses"])
        tally.promotions += int(got.counters["promotions"])
    if expected.logits.shape != got.logits.shape or not (expected.logits == got.logits).all():
        tally.rounds_not_bit_equal += 1
        print(f"not bit-equal, round {tally.rounds}: {scenario.to_json()}", file=sys.stderr, flush=True)
        same_shape = expected.logits.shape == got.logits.shape
        divergence = kl_divergence(expected.logits, got.logits) if same_shape else float("inf")
        tally.worst_kld = max(tally.worst_kld, divergence)
        if tier == "CPU" or not divergence < KLD_LIMIT:
            tally.wrong.append(scenario.to_json())
    tally.resident_bytes.append(got.resident_bytes)
    return got.machine.get("vram_used_bytes", 0)


def main() -> int:
    """Play rounds until the time is over; 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tier", choices=TIERS, default="EMU0", help="the cache's fast tier")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, tally, started = random.Random(options.seed), Tally(), time.monotonic()
    used_bytes: dict[tuple[str, bool], int] = {}
    vram_growth_bytes = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_models(folder)
        stock, cached = Replayer(folder / "stock"), Replayer(folder / "cached", *TIERS[options.tier])
        while not tally.wrong and (time.monotonic() < started + 60 * options.minutes or tally.rounds < 4):
            scenario = random_scenario(rng, models, options.tier)
            used = play(tally, scenario, stock, cached, options.tier)
            first = used_bytes.setdefault((scenario.model, scenario.dense_on_device), used)
            vram_growth_bytes = max(vram_growth_bytes, used - first)
        stock.close()
        cached.close()
    grown = tally.growth_bytes() > MOST_GROWTH_BYTES or vram_growth_bytes > 0
    report = {key: value for key, value in vars(tally).items() if key != "resident_bytes"} | {
        "minutes": round((time.monotonic() - started) / 60, 2),
        "tier": options.tier,
        "seed": options.seed,
        "resident_mib": [round(tally.resident_bytes[at] / 2**20, 1) for at in (0, tally.rounds // 2, -1)],
        "resident_growth_mib": round(tally.growth_bytes() / 2**20, 1),
        "vram_growth_bytes": vram_growth_bytes,
    }
    print(json.dumps(report, indent=2))
    return int(bool(tally.wrong) or grown)


if __name__ == "__main__":
    sys.exit(main())
