"""Several contexts and models in one process, with the cache: `crowd.py together|orders|recreate`.

Reads a list of scenarios, one JSON line each, from standard input. Writes each one's logits to FOLDER/<n>.npy and
prints one JSON line about the process.
"""

import argparse
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from replay import Cache, Replay, configure, placement, register
from scenario import Scenario

from moetune.engine import library
from moetune.engine.model_handle import ModelHandle
from moetune.engine.native_log import NativeLog

# What may change while contexts compute, and what also makes slots come and go. No token may change.
SLOTS = {"slots": ("0", "1", "3", "6", "16"), "path": ("host", "device", "auto")}
LIVE = {
    "policy": ("heat", "lru", "static"),
    "promotions": ("0", "1", "4"),
    "interval": ("1", "2", "7"),
    "dwell": ("0", "2", "30"),
    "prefill": ("scheduler", "cold", "stream", "auto"),
    "guard": ("0", "1"),
    "in_flight": ("0", "100000", "100000000"),
}


@dataclass(frozen=True)
class Crowd:
    """The loaded plugin, and every scenario with its model; equal paths share one."""

    cache: Cache
    scenarios: tuple[Scenario, ...]
    models: dict[str, ModelHandle]

    def replay(self, scenario: Scenario) -> Replay:
        return Replay(scenario, self.models[scenario.model], self.cache)


def load(scenarios: tuple[Scenario, ...]) -> dict[str, ModelHandle]:
    """Each model once, placed as the first scenario that names it says."""
    log = NativeLog(sys.stderr)
    models: dict[str, ModelHandle] = {}
    for scenario in scenarios:
        if scenario.model not in models:
            models[scenario.model] = ModelHandle(Path(scenario.model), log, placement(scenario))
    return models


def together(crowd: Crowd) -> tuple[list[np.ndarray], dict[str, float]]:
    """Every scenario in a thread of its own while settings change. Reports the longest a change had to wait."""
    logits: list[np.ndarray | None] = [None] * len(crowd.scenarios)
    barrier = threading.Barrier(len(crowd.scenarios))
    waits_s: list[float] = []
    hits, last = 0, 0

    def run(number: int, scenario: Scenario) -> None:
        replay = crowd.replay(scenario)
        barrier.wait()
        logits[number] = replay.run()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(crowd.scenarios)]
    for thread in threads:
        thread.start()
    rng = random.Random(5)
    while any(thread.is_alive() for thread in threads):
        settings = SLOTS if rng.random() < 0.15 else LIVE
        key = rng.choice(list(settings))
        start = time.perf_counter()
        crowd.cache.set(key, rng.choice(settings[key]))
        waits_s.append(time.perf_counter() - start)
        if rng.random() < 0.05:
            crowd.cache.clear()
        time.sleep(0.002)
        # Counters go with the slots they belong to.
        counters = library.total(crowd.cache.layers())
        now = counters.hits if counters else 0
        hits, last = hits + now - (last if now >= last else 0), now
    for thread in threads:
        thread.join()
    assert all(rows is not None for rows in logits), "a thread died"
    return [rows for rows in logits if rows is not None], {
        "changes": len(waits_s),
        "longest_s": max(waits_s),
        "hits": hits,
    }


def orders(crowd: Crowd) -> tuple[list[np.ndarray], dict[str, float]]:
    """Contexts, then their models, end in every order that leaves no context without its model; those that are left
    decode on after each. Rows of a scenario: those of all orders, one after the other."""
    rows: list[list[np.ndarray]] = [[] for _ in crowd.scenarios]
    count = 0
    for order in _endings(crowd.scenarios):
        count += 1
        models = load(crowd.scenarios)
        alive = {n: Replay(s, models[s.model], crowd.cache) for n, s in enumerate(crowd.scenarios)}
        for replay in alive.values():
            replay.prompt(6)
        for end in order:
            for replay in alive.values():
                replay.decode(2)
            if isinstance(end, int):
                replay = alive.pop(end)
                rows[end] += replay.rows
                replay.close()
            else:
                models[end].close()
    return [np.stack(each) for each in rows], {"orders": count}


def _endings(scenarios: tuple[Scenario, ...]) -> Iterator[tuple[int | str, ...]]:
    numbers = range(len(scenarios))
    for order in itertools.permutations([*numbers, *{s.model: None for s in scenarios}]):
        if all(order.index(n) < order.index(scenarios[n].model) for n in numbers):
            yield order


def recreate(crowd: Crowd) -> tuple[list[np.ndarray], dict[str, float]]:
    """The first scenario again and again in new contexts; reports what has grown since the fifth one."""
    process, runs, rows = psutil.Process(), 60, []
    rss_bytes, used_bytes = 0, 0
    for run in range(runs):
        rows = [crowd.replay(crowd.scenarios[0]).run()]
        if run == 5:
            rss_bytes, used_bytes = process.memory_info().rss, library.device_used_bytes("EMU0")
    grown = {"rss": process.memory_info().rss - rss_bytes, "vram": library.device_used_bytes("EMU0") - used_bytes}
    return rows, {"runs": runs, "rss_grown_bytes": grown["rss"], "vram_grown_bytes": grown["vram"]}


MODES: dict[str, Callable[[Crowd], tuple[list[np.ndarray], dict[str, float]]]] = {
    "together": together,
    "orders": orders,
    "recreate": recreate,
}


def main() -> None:
    """Parse, run, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fast-tier", required=True)
    parser.add_argument("--emulated")
    options = parser.parse_args()
    scenarios = tuple(Scenario.from_json(line) for line in sys.stdin)
    cache = register(options.fast_tier, options.emulated)
    assert cache is not None
    configure(cache, scenarios[0])
    models = load(scenarios) if options.mode != "orders" else {}
    logits, report = MODES[options.mode](Crowd(cache, scenarios, models))
    for number, rows in enumerate(logits):
        np.save(options.folder / f"{number}.npy", rows)
    for model in models.values():
        model.close()
    report["layers_left"] = len(cache.layers())
    print(json.dumps(report), file=sys.stdout, flush=True)
    if options.emulated:
        used_bytes = library.device_used_bytes("EMU0")
        assert used_bytes == 0, f"{used_bytes} bytes of the device's memory are not given back"


if __name__ == "__main__":
    main()
