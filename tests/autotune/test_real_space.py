"""Points of the space through the real engine: what is said to fit runs, and holds what it was planned to hold."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from world import WORKLOAD, request_for

from moetune.autotune.memory import MemoryModel, memory_of
from moetune.autotune.space import Space, build_space
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.writer import write_synthetic
from moetune.engine.config import EngineConfig, Spread
from moetune.engine.emulator import EmulatedMachine, parse_emulated
from moetune.engine.measurement import Measurement, Trace
from moetune.engine.model import Model, read_model
from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_file import encode
from moetune.engine.runner import EngineRunner
from moetune.hardware.machine import DeviceKind, GgmlDevice
from moetune.hardware.probe import read_machine

MIB = 1 << 20
TRACE = Trace("t", (), tuple(range(1, 41)), tuple(range(50, 62)), tuple(range(62, 80)))
POINTS = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """10 MiB of experts, in 4 layers of 32, and 2 MiB of everything else."""
    path = tmp_path_factory.mktemp("space") / "m.gguf"
    write_synthetic(path, SyntheticSpec(layers=4, experts=32, ff=192, quant="Q4_0"))
    return read_model(path)


@pytest.fixture(scope="module")
def routing(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up recording of the model."""
    layers = tuple(RoutedLayer(layer.index, model.n_expert, model.n_expert_used) for layer in model.layers)
    rng = np.random.default_rng(0)
    ids = tuple(
        np.array([rng.choice(layer.n_expert, layer.n_used, replace=False) for _ in range(64)]).astype(layer.id_type)
        for layer in layers
    )
    path = tmp_path_factory.mktemp("routing") / "routing.moetrace"
    path.write_bytes(encode(Routing(model.fingerprint, layers, (WorkloadRouting("code", ids),))))
    return path


def space_on(emulated: EmulatedMachine, model: Model, routing: Path, n_devices: int) -> tuple[Space, MemoryModel]:
    """This machine, with emulated accelerators that are not registered in this process."""
    total = emulated.vram_mib * MIB
    devices = [
        GgmlDevice(f"EMU{i}", "emulated accelerator", DeviceKind.GPU, total, total, None) for i in range(n_devices)
    ]
    here = read_machine()
    machine = replace(here, devices=(*devices, *(d for d in here.devices if d.kind is DeviceKind.CPU)))
    memory = memory_of(model, machine, None if n_devices else "none")
    workload = replace(WORKLOAD, depth_tokens=0, prompt_tokens=40, reply_tokens=12)
    request = request_for(Path("/nowhere"), workload=workload, n_ctx=512, routing=routing)
    return build_space(model, machine.cpu, memory, request), memory


def drawn_to_fit(space: Space, memory: MemoryModel) -> list[EngineConfig]:
    """At random, some with slots and as many without; those that share a placement stand together."""
    rng = random.Random(0)
    drawn = [{knob.name: knob.encode(rng.choice(knob.choices)) for knob in space.knobs} for _ in range(400)]
    configs = dict.fromkeys(space.config_of(point, memory) for point in drawn)
    fitting = [config for config in configs if max(memory.excess_bytes(config)) <= 0]
    chosen = [[c for c in fitting if c.has_slots == slots][:POINTS] for slots in (True, False)]
    return sorted((config for half in chosen for config in half), key=lambda config: str(config.placement))


@pytest.mark.parametrize("n_devices", [0, 1, 2])
def test_points_that_fit_run_and_hold_what_was_planned(model: Model, routing: Path, n_devices: int) -> None:
    """On a plain CPU, with one accelerator and with two; nothing is refused, out of memory, or short of slots."""
    emulated = parse_emulated(f"desktop,vram_mib={10 if n_devices == 2 else 12},scale=1,devices={max(1, n_devices)}")
    space, memory = space_on(emulated, model, routing, n_devices)
    fitting = drawn_to_fit(space, memory)
    assert any(config.has_slots for config in fitting) == (n_devices > 0)
    assert any(config.more_devices for config in fitting) == (n_devices > 1)
    with EngineRunner(model.path, emulated if n_devices else None) as runner:
        for config in fitting:
            result = runner.measure(config, TRACE, passes=1, time_limit_s=60)
            assert isinstance(result, Measurement), (config, result)
            assert result.fast_bytes <= memory.footprint(config).fast_bytes
            assert _held(config, result.slots)


def _held(config: EngineConfig, slots: int) -> bool:
    """As many slots a layer as planned; where they are spread, some layer may have none."""
    return config.cache is None or config.cache.spread is Spread.COVERAGE or slots == config.cache.slots
