"""Predictions beside the engine's recorded runs on emulated machines (benchmarks/results/engine.json)."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from world import machine_with

from moetune.autotune.cost import cost_model
from moetune.autotune.cost_hits import Skew, curve_from_skew
from moetune.autotune.memory import MemoryModel
from moetune.autotune.tier import choose_tiers
from moetune.autotune.trace import RequestShape
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.emulator import parse_emulated
from moetune.engine.model import Model, read_model
from moetune.hardware.machine import Bandwidth, Compute, DeviceKind, GgmlDevice, Link, Machine, Transfers

RECORDED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "engine.json").read_text())["raw"]
CASES = [name for name in RECORDED if "samples" in RECORDED[name]]
ARMS = ("experts in RAM", "layer offload", "all on the device", "cache")


def rate(gbps: float) -> Bandwidth:
    return Bandwidth(gbps, gbps, gbps, 1, 1)


def emulated_machine(text: str) -> Machine:
    """What the probe finds on such a machine: its throttles, and a core of this computer for the rest."""
    emulated = parse_emulated(text)
    device, host, link = (
        rate(gbps * emulated.scale) for gbps in (emulated.device_gbps, emulated.host_gbps, emulated.link_gbps)
    )
    size = emulated.vram_mib << 20
    join_s = (emulated.launch_us + 2 * emulated.link_latency_us) * 1e-6
    node_s = emulated.launch_us * 1e-6
    machine = machine_with(GgmlDevice("EMU0", "emulated accelerator", DeviceKind.GPU, size, size, None))
    slow_host = GgmlDevice("EMUHOST", "emulated slow host", DeviceKind.ACCEL, 0, 0, None)
    return replace(
        machine,
        devices=(*machine.devices, slow_host),
        memory=replace(machine.memory, read_1_thread=rate(25), read_all_threads=rate(30)),
        links=(Link("EMU0", True, Transfers(1, None, link, None, link), None, device, ()),),
        compute=(
            Compute("EMU0", True, 1, None, None, 20.0, node_s, join_s, ()),
            Compute("EMUHOST", True, 2, host, host, None, None, None, ()),
            Compute("CPU", False, 2, rate(15), rate(8), 20.0, 1e-7, None, ()),
        ),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """By case; routing changes no size, so that one file serves all routings of a machine."""
    folder, found = tmp_path_factory.mktemp("recorded"), {}
    for machine in {case.split(", ")[0] for case in CASES}:
        spec = next(RECORDED[case]["model"] for case in CASES if case.startswith(machine))
        path = folder / f"{machine}.gguf"
        write_synthetic(path, SyntheticSpec(**spec))
        found[machine] = read_model(path)
    return found


def token_s(sample: dict[str, Any]) -> float:
    return sum(sample["reply_s"]) / len(sample["reply_s"])


def errors(case: str, model: Model) -> dict[str, float]:
    """Of the predicted seconds a token, by arm."""
    recorded = RECORDED[case]
    machine = emulated_machine(recorded["emulated"])
    memory = MemoryModel(model, choose_tiers(machine, None)[0], 1 << 34)
    hits = curve_from_skew(model.n_expert, model.n_expert_used, Skew(recorded["top_fifth_share"], 0.2, "counted"))
    cost = cost_model(model, machine, memory, RequestShape(0, 512, 44, scaled=False), hits)
    on_device = EngineConfig(n_ctx=1024, n_threads=1, device="EMU0", gpu_layers=model.n_layers + 1)
    in_ram = replace(on_device, ram_expert_layers=model.n_layers)
    slots = recorded["samples"]["cache"][0]["slots"][0]
    configs = {
        "experts in RAM": in_ram,
        "layer offload": replace(on_device, ram_expert_layers=model.n_layers * 3 // 4),
        "all on the device": on_device,
        "cache": replace(in_ram, cache=CacheKnobs(slots=slots), repack=False),
    }
    measured = {arm: median(token_s(sample) for sample in recorded["samples"][arm]) for arm in ARMS}
    return {arm: 1 / cost.predict(configs[arm]).tg_tps / measured[arm] - 1 for arm in ARMS}


def test_generation_is_predicted_on_every_recorded_machine(models: dict[str, Model]) -> None:
    """Before any trial, from the machine's speeds and how skewed routing is."""
    off = [abs(error) for case in CASES for error in errors(case, models[case.split(", ")[0]]).values()]
    assert len(off) == 36
    assert median(off) <= 0.06
    assert max(off) <= 0.20


def test_where_the_cache_wins_is_predicted(models: dict[str, Model]) -> None:
    """It wins on the fast card with skewed routing, by far; on the server it gains nothing worth having."""
    gains = {}
    for case in CASES:
        off = errors(case, models[case.split(", ")[0]])
        samples = RECORDED[case]["samples"]
        in_ram, cached = (
            median(token_s(s) for s in samples[arm]) * (1 + off[arm]) for arm in ("experts in RAM", "cache")
        )
        gains[case] = in_ram / cached
    assert gains["desktop, skewed"] > 3
    assert gains["desktop, skewed"] > gains["desktop, drifting"] > gains["desktop, flat"]
    assert all(gain < 1.1 for case, gain in gains.items() if case.startswith("server"))
