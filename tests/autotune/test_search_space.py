"""The search space: every point is a valid configuration, and the way back is exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from world import MIB, WORKLOAD, dense_model, gpu, machine_with, memory_of, moe_model, request_for

from moetune.autotune.cost import cost_model
from moetune.autotune.memory import MemoryModel
from moetune.autotune.seeds import seeds
from moetune.autotune.space import Space, build_space
from moetune.autotune.trace import shape_for
from moetune.engine.config import EngineConfig, KvType
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine

FOLDER = Path("/nowhere")
ROOMY, SMALL, TIGHT, TINY = (machine_with(gpu(mib)) for mib in (4096, 900, 450, 395))
WORLDS: dict[str, tuple[Machine, Model, str | None]] = {
    "cache": (SMALL, moe_model(), None),
    "everything fits": (ROOMY, moe_model(), None),
    "dense part does not fit": (TIGHT, moe_model(), None),
    "no slot fits": (TINY, moe_model(), None),
    "dense": (SMALL, dense_model(), None),
    "no device": (machine_with(), moe_model(), None),
    "cpu as its own tier": (machine_with(), moe_model(), "CPU"),
    "mla": (SMALL, moe_model(is_mla=True), None),
}


def space_of(machine: Machine, model: Model, device: str | None = None, **changes: object) -> tuple[Space, MemoryModel]:
    memory = memory_of(machine, model, device)
    return build_space(model, machine.cpu, memory, request_for(FOLDER, **changes)), memory


def points(space: Space) -> st.SearchStrategy[dict[str, Any]]:
    """Any point that Optuna could sample."""
    strategies: dict[str, st.SearchStrategy[Any]] = {}
    for name, distribution in space.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            strategies[name] = st.sampled_from(distribution.choices)
        else:
            assert isinstance(distribution, IntDistribution)
            strategies[name] = st.integers(distribution.low, distribution.high)
    return st.fixed_dictionaries(strategies)


def assert_valid(config: EngineConfig, model: Model, machine: Machine) -> None:
    assert 1 <= config.n_threads <= machine.cpu.usable_cores
    assert 64 <= config.n_ubatch <= config.n_ctx
    assert 0 <= config.gpu_layers <= model.n_layers + 1
    assert 0 <= config.ram_expert_layers <= model.n_layers
    assert config.type_k in (KvType.F16, KvType.Q8_0)
    assert not model.is_mla or config.type_k == config.type_v
    assert config.device is not None or config.gpu_layers == 0
    if config.cache is not None:
        assert model.is_moe
        assert config.device is not None
        assert 0 <= config.cache.slots <= model.n_expert
        assert not config.repack


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_point_is_a_valid_configuration_and_comes_back(world: str, data: st.DataObject) -> None:
    """A sampled point maps to a configuration within bounds, which maps to a point of the same configuration."""
    machine, model, device = WORLDS[world]
    space, memory = space_of(machine, model, device)
    config = space.config_of(data.draw(points(space)), memory)
    assert_valid(config, model, machine)
    back = space.params_of(config, memory)
    assert back.keys() == space.distributions.keys()
    assert space.config_of(back, memory) == config


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_slots_fill_what_is_left_and_no_more(data: st.DataObject) -> None:
    """Whatever else a point asks for, its slots never push it over the limit."""
    space, memory = space_of(SMALL, moe_model())
    config = space.config_of(data.draw(points(space)), memory)
    if config.cache is not None and config.cache.slots > 0:
        assert memory.fits_fast(config)


@pytest.mark.parametrize(
    ("world", "present", "absent"),
    [
        ("cache", {"engine", "slots_percent", "ram_expert_layers"}, {"gpu_layers", "type_kv"}),
        ("everything fits", {"ram_expert_layers"}, {"engine", "slots_percent", "interval_tokens"}),
        ("dense part does not fit", {"gpu_layers", "slots_percent"}, {"ram_expert_layers"}),
        ("no slot fits", {"n_threads"}, {"engine", "slots_percent"}),
        ("dense", {"gpu_layers"}, {"engine", "slots_percent", "ram_expert_layers"}),
        ("no device", {"n_threads", "n_ubatch", "type_k"}, {"engine", "gpu_layers", "ram_expert_layers"}),
        ("cpu as its own tier", {"engine", "slots_percent"}, {"gpu_layers", "ram_expert_layers"}),
        ("mla", {"type_kv"}, {"type_k", "type_v"}),
    ],
)
def test_only_knobs_that_do_something_are_searched(world: str, present: set[str], absent: set[str]) -> None:
    """A knob without effect on this machine and model is no dimension."""
    machine, model, device = WORLDS[world]
    names = set(space_of(machine, model, device)[0].distributions)
    assert present <= names
    assert not absent & names


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ("everything fits", "nothing left to cache"),
        ("dense", "dense"),
        ("no device", "no fast tier"),
        ("no slot fits", "too small for one expert slot"),
    ],
)
def test_an_idle_cache_says_why(world: str, said: str) -> None:
    """The reason is there to be printed."""
    machine, model, device = WORLDS[world]
    assert said in (space_of(machine, model, device)[0].cache_idle or "")


def test_a_tier_too_small_for_one_slot_says_what_is_needed() -> None:
    """Both figures are named: what one slot in every layer takes and what is left."""
    idle = space_of(TINY, moe_model())[0].cache_idle or ""
    assert "16.0 MiB" in idle
    assert "left" in idle


def test_only_the_wanted_kv_types_compete() -> None:
    """f16 and q8_0 by default, others when named."""
    space, _ = space_of(SMALL, moe_model(), kv_types=(KvType.F16, KvType.Q4_0))
    assert space.choices("type_k") == ("f16", "q4_0")
    assert space_of(SMALL, moe_model())[0].choices("type_v") == ("f16", "q8_0")


def test_a_block_that_does_not_divide_the_head_is_left_out() -> None:
    """Quantised caches come in blocks of 32; a head of 80 values cannot use them."""
    layers = tuple(replace(layer, head_dim_k=80, head_dim_v=80) for layer in moe_model().layers)
    model = moe_model(layers=layers)
    space, _ = space_of(SMALL, model)
    assert "type_k" not in space.distributions
    assert space.default.type_k is KvType.F16
    with pytest.raises(MoetuneError) as caught:
        space_of(SMALL, model, kv_types=(KvType.Q8_0,))
    assert caught.value.code is ExitCode.USAGE


def test_free_memory_does_not_change_the_space() -> None:
    """Tomorrow more or less memory may be free: the study must still be the same."""
    busy = gpu(900)
    busy = replace(busy, memory_free_bytes=500 * MIB)
    assert space_of(machine_with(busy), moe_model())[0].digest == space_of(SMALL, moe_model())[0].digest


@pytest.mark.parametrize("world", WORLDS)
def test_seeds_fit_and_differ(world: str) -> None:
    """No seed is wasted on a repeat or on what cannot fit."""
    machine, model, device = WORLDS[world]
    space, memory = space_of(machine, model, device)
    cost = cost_model(model, machine, memory, shape_for(WORKLOAD, space.default.n_ctx))
    proposed = seeds(space, memory, cost)
    assert len(set(proposed)) == len(proposed) > 0
    assert all(memory.fits_fast(config) for config in proposed)
    assert all(space.config_of(space.params_of(c, memory), memory) == c for c in proposed if c.cache is None)
    assert any(c.cache is not None for c in proposed) == space.has_cache
