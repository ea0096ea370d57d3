"""One whole search through the real engine process, on an emulated accelerator and a random-weight model."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from world import WORKLOAD, request_for, still

from moetune.autotune import baselines
from moetune.autotune.display import Display
from moetune.autotune.memory import MemoryModel
from moetune.autotune.race import Rules
from moetune.autotune.record import Origin
from moetune.autotune.result import SearchResult
from moetune.autotune.search import search
from moetune.autotune.table import result_table
from moetune.autotune.tier import choose_tiers
from moetune.demo.synthetic.spec import SyntheticSpec
from moetune.demo.synthetic.writer import write_synthetic
from moetune.engine.config import KvType
from moetune.engine.emulator import parse_emulated
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner, register_emulated
from moetune.hardware.machine import Machine
from moetune.hardware.probe import read_machine

# Room for the dense parts and half the experts of the model below.
VRAM = "desktop,vram_mib=10"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Machine, Model]:
    folder = tmp_path_factory.mktemp("real")
    write_synthetic(folder / "m.gguf", SyntheticSpec(layers=3, experts=32, ff=192, drift=0.2))
    emulated, model = parse_emulated(VRAM), read_model(folder / "m.gguf")
    register_emulated(emulated)
    machine = read_machine(Path(model.path))
    workload = replace(WORKLOAD, depth_tokens=16, prompt_tokens=40, reply_tokens=24)
    request = request_for(
        folder / "s",
        workload=workload,
        n_ctx=256,
        n_trials=3,
        rules=Rules(most_rounds=4),
        passes=1,
        device="EMU0",
        kv_types=(KvType.F16,),
    )
    console = Console(file=io.StringIO())
    with EngineRunner(model.path, emulated) as runner, Display(console, model.n_layers, emulated=True) as display:
        return search(request, runner, machine, model, display, still), machine, model


def test_the_real_engine_measures_every_baseline_and_trial(searched: tuple[SearchResult, Machine, Model]) -> None:
    """No configuration fails on a machine it was predicted to fit."""
    result, _, _ = searched
    launched = [record for record in result.records if record.launched]
    assert [record.failure for record in launched if record.measurement is None] == []
    names = {record.name for record in launched}
    assert {baselines.EXPERTS_IN_RAM, baselines.CACHE_OFF, baselines.BEST_OFFLOAD} <= names
    assert sum(record.origin in (Origin.SEED, Origin.SAMPLER) for record in launched) == 3
    assert "cache off" in result_table(result)
    assert "mulated" in result.verdict.sentence


def test_predicted_memory_covers_what_the_engine_used(searched: tuple[SearchResult, Machine, Model]) -> None:
    """The uncalibrated prediction is an upper bound, and a close one: weights, cache and slots are exact."""
    result, machine, model = searched
    memory = MemoryModel(model, choose_tiers(machine, "EMU0")[0], machine.memory.available_bytes)
    for record in result.records:
        if record.measurement is not None:
            footprint = memory.footprint(record.config)
            assert footprint.fast_bytes - footprint.guessed_bytes <= record.measurement.fast_bytes + (1 << 18)
            assert record.measurement.fast_bytes <= footprint.fast_bytes
