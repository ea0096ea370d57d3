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
from moetune.autotune.knobs import has_flash_attention, quantised
from moetune.autotune.memory import MemoryModel
from moetune.autotune.seeds import seeds
from moetune.autotune.space import Space, build_space
from moetune.autotune.trace import shape_for
from moetune.engine.config import CacheKnobs, EngineConfig, FlashAttention, KvType, Policy, Spread
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine

FOLDER = Path("/nowhere")
ROOMY, SMALL, TIGHT, TINY = (machine_with(gpu(mib)) for mib in (4096, 900, 450, 395))
PAIR = machine_with(gpu(1000), gpu(700, "CUDA1"))
WORLDS: dict[str, tuple[Machine, Model, str | None]] = {
    "two devices": (PAIR, moe_model(), None),
    "three devices": (machine_with(gpu(700), gpu(650, "CUDA1"), gpu(600, "CUDA2")), moe_model(), None),
    "dense on two devices": (PAIR, dense_model(), None),
    "no flash attention": (SMALL, moe_model(architecture="grok"), None),
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
    """What llama.cpp and the plugin accept, and nothing set that changes nothing."""
    assert 1 <= config.n_threads <= machine.cpu.usable_cores
    assert config.n_threads_batch is None or config.n_threads != config.n_threads_batch <= machine.cpu.usable_cores
    assert not quantised(config.type_v) or config.flash_attn is FlashAttention.AUTO
    assert has_flash_attention(model) or not quantised(config.type_v)
    assert not config.no_host or (config.device is not None and config.cache is None)
    assert config.repack or config.device is None or config.cache is not None
    names = {device.name for device in machine.devices}
    assert {config.device, *config.more_devices} - {None} <= names
    assert config.device not in config.more_devices
    if config.more_devices:
        assert len(config.tensor_split) == len(config.more_devices) + 1
        assert min(config.tensor_split) > 0
        assert sum(config.tensor_split) == config.gpu_layers
    else:
        assert config.tensor_split == ()
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
        assert config.cache.on or config.cache == CacheKnobs(slots=0)
        assert (config.cache.spread is Spread.COVERAGE) == (config.cache.budget_bytes > 0)
        assert config.cache.routing is not None or config.cache.policy is not Policy.STATIC


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


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for a recording: the space reads that it is there and what it holds, not its meaning."""
    path = tmp_path_factory.mktemp("routing") / "routing.moetrace"
    path.write_bytes(b"recorded")
    return path


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_point_of_a_space_with_recorded_routing_comes_back(data: st.DataObject, routing: Path) -> None:
    """Uneven spread and a static set are added, both with the recording they need."""
    space, memory = space_of(SMALL, moe_model(), routing=routing)
    assert space.choices("spread") == ("flat", "coverage")
    assert "static" in space.choices("policy")
    config = space.config_of(data.draw(points(space)), memory)
    assert_valid(config, moe_model(), SMALL)
    assert config.cache is None or not config.cache.on or config.cache.routing == str(routing)
    assert space.config_of(space.params_of(config, memory), memory) == config


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_slots_fill_what_is_left_and_no_more(data: st.DataObject, routing: Path) -> None:
    """Whatever else a point asks for, its slots, even or not, leave its reserve free."""
    space, memory = space_of(SMALL, moe_model(), routing=routing)
    config = space.config_of(data.draw(points(space)), memory)
    tier = memory.tier
    if config.cache is not None and config.cache.on and tier is not None:
        assert memory.fits_fast(config)
        reserve = config.cache.reserve_bytes or tier.reserve_bytes
        assert memory.footprint(config).fast_bytes <= tier.total_bytes - reserve


def test_a_larger_reserve_leaves_fewer_slots() -> None:
    """The same share of less."""
    space, memory = space_of(machine_with(gpu(1400)), moe_model())
    point = space.params_of(space.default, memory) | {"engine": "cache", "slots_percent": 20}
    slots = [space.config_of(point | {"reserve": r}, memory).cache for r in range(len(space.choices("reserve")))]
    held = [knobs.slots for knobs in slots if knobs is not None]
    assert len(held) == 3
    assert held[0] > held[1] > held[2] > 0


@pytest.mark.parametrize("world", ["cache", "two devices", "dense", "no slot fits"])
def test_the_cpu_alone_is_in_the_space_with_settings_of_its_own(world: str) -> None:
    """Beside a device that may cost more than it gives; at such a point nothing of the device is left."""
    space, memory = space_of(*WORLDS[world])
    threads = len(space.choices("n_threads")) - 1
    point = space.params_of(space.default, memory) | {"engine": "cpu", "n_threads": threads, "repack": False}
    config = space.config_of(point, memory)
    assert config == replace(
        space.default.on_cpu,
        n_threads=config.n_threads,
        n_threads_batch=space.default.n_threads,
        repack=False,
    )
    assert config.n_threads > space.default.n_threads
    assert space.config_of(space.params_of(config, memory), memory) == config


def test_packed_weights_are_asked_for_as_the_machine_needs() -> None:
    """One knob: repacking on a plain CPU, no_host besides where there is a device, the cache's own copy for misses."""
    for world, engine, fields in (
        ("no device", None, ("repack",)),
        ("cache", "stock", ("no_host",)),
        ("cache", "cache", ("cache",)),
    ):
        machine, model, device = WORLDS[world]
        space, memory = space_of(machine, model, device)
        point = space.params_of(space.default, memory) | ({"engine": engine, "slots_percent": 10} if engine else {})
        plain, packed = (space.config_of(point | {"repack": packed}, memory) for packed in (False, True))
        changed = {name for name in vars(plain) if getattr(plain, name) != getattr(packed, name)}
        assert changed == set(fields)
        assert engine != "cache" or (packed.cache is not None and packed.cache.repack)


def test_either_device_can_hold_the_slots() -> None:
    """That device gets the first layers, whose experts lie in RAM."""
    space, memory = space_of(PAIR, moe_model())
    point = space.params_of(space.default, memory) | {"engine": "cache", "slots_percent": 20, "main_percent": 4}
    first, second = (space.config_of(point | {"device": name}, memory) for name in ("CUDA0", "CUDA1"))
    assert (first.device, first.more_devices) == ("CUDA0", ("CUDA1",))
    assert (second.device, second.more_devices) == ("CUDA1", ("CUDA0",))
    assert first.tensor_split == second.tensor_split
    assert first.cache is not None
    assert second.cache is not None
    assert first.cache.slots > second.cache.slots > 0


def test_all_layers_on_one_of_two_devices_is_that_device_alone() -> None:
    """The other is not even named."""
    space, memory = space_of(PAIR, moe_model())
    point = space.params_of(space.default, memory) | {"main_percent": len(space.choices("main_percent")) - 1}
    config = space.config_of(point, memory)
    assert (config.more_devices, config.tensor_split) == ((), ())


def test_a_space_is_the_same_whatever_is_free_now() -> None:
    """A resumed search finds its study again."""
    busy = replace(PAIR, devices=tuple(replace(d, memory_free_bytes=d.memory_free_bytes // 3) for d in PAIR.devices))
    then, now = space_of(PAIR, moe_model())[0], space_of(busy, moe_model())[0]
    assert (then.digest, then.default, then.cache_idle) == (now.digest, now.default, now.cache_idle)


def test_another_recording_is_another_space(routing: Path, tmp_path: Path) -> None:
    """What a static set or a spread was measured with is part of what its parameters mean."""
    again = tmp_path / "routing.moetrace"
    again.write_bytes(b"recorded again")
    digests = {space_of(SMALL, moe_model(), routing=path)[0].digest for path in (None, routing, again)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("world", "present", "absent"),
    [
        (
            "cache",
            {"engine", "slots_percent", "ram_expert_layers", "policy", "reserve", "prefill", "ahead", "flash_attn"},
            {"gpu_layers", "type_kv", "device", "main_percent", "spread"},
        ),
        ("two devices", {"device", "main_percent", "engine"}, set()),
        ("dense on two devices", {"device", "main_percent", "gpu_layers", "engine"}, {"policy"}),
        ("no flash attention", {"n_threads_batch", "repack", "load_mode"}, {"flash_attn"}),
        ("everything fits", {"ram_expert_layers"}, {"engine", "slots_percent", "interval_tokens"}),
        ("dense part does not fit", {"gpu_layers", "slots_percent"}, {"ram_expert_layers"}),
        ("no slot fits", {"n_threads", "engine"}, {"slots_percent"}),
        ("dense", {"gpu_layers", "engine"}, {"slots_percent", "ram_expert_layers"}),
        (
            "no device",
            {"n_threads", "n_threads_batch", "n_ubatch", "type_k", "repack", "load_mode", "flash_attn"},
            {"engine", "gpu_layers", "ram_expert_layers", "device", "reserve", "policy"},
        ),
        (
            "cpu as its own tier",
            {"engine", "slots_percent", "policy"},
            {"gpu_layers", "ram_expert_layers", "reserve", "prefill", "ahead"},
        ),
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
    proposed = seeds(space, memory, cost, 12, ())
    assert len(set(proposed)) == len(proposed) > 0
    assert all(memory.fits_fast(config) for config in proposed)
    assert all(space.config_of(space.params_of(c, memory), memory) == c for c in proposed if c.cache is None)
    assert any(c.cache is not None for c in proposed) == space.has_cache
