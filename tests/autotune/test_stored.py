"""What a study holds may come from anywhere: only configurations of this search reach the engine."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import gpu, machine_with, memory_of, moe_model, request_for

from moetune.autotune.baselines import fixed_baselines, offloads
from moetune.autotune.claim import digest_of
from moetune.autotune.space import Space, build_space
from moetune.autotune.stored import belongs, here
from moetune.engine.config import CacheKnobs, EngineConfig, KvType, Policy

MACHINE, MODEL = machine_with(gpu(900)), moe_model()
MEMORY = memory_of(MACHINE, MODEL)


def space_in(folder: Path, routing: str | None = None) -> Space:
    return replace(build_space(MODEL, MACHINE.cpu, MEMORY, request_for(folder)), routing=routing)


SPACE = space_in(Path())
CACHED = SPACE.config_of(SPACE.params_of(replace(SPACE.default, cache=CacheKnobs(slots=8)), MEMORY), MEMORY)


@settings(deadline=None)
@given(st.fixed_dictionaries({knob.name: st.sampled_from(knob.choices).map(knob.encode) for knob in SPACE.knobs}))
def test_every_point_of_the_space_belongs(point: dict[str, str | int | float | bool]) -> None:
    """Whatever the sampler proposes can be read back."""
    assert belongs(SPACE.config_of(point, MEMORY), SPACE)


def test_baselines_belong() -> None:
    """Those known beforehand and every layer offload, with another's threads and KV types too."""
    known = [baseline.config for baseline in fixed_baselines(SPACE)]
    assert all(belongs(config, SPACE) for config in (*known, *offloads(SPACE)))
    like = replace(CACHED, n_threads=int(SPACE.choices("n_threads")[0]), type_k=KvType.Q8_0)
    assert all(belongs(config.tuned_like(like), SPACE) for config in (*known, *offloads(SPACE)))


@pytest.mark.parametrize(
    "foreign",
    [
        replace(CACHED, n_threads=100_000),
        replace(CACHED, n_threads_batch=100_000),
        replace(CACHED, n_ctx=1 << 30),
        replace(CACHED, n_ubatch=1 << 30),
        replace(CACHED, type_k=KvType.F32),
        replace(CACHED, device="Vulkan0"),
        replace(CACHED, more_devices=("Vulkan0",)),
        replace(CACHED, gpu_layers=MODEL.n_layers + 2),
        replace(CACHED, ram_expert_layers=-1),
        replace(CACHED, tensor_split=(1, 1, 1, 1)),
        replace(CACHED, cache=CacheKnobs(slots=MODEL.n_expert + 1)),
        replace(CACHED, cache=CacheKnobs(slots=0, budget_bytes=1 << 60)),
        replace(CACHED, cache=CacheKnobs(slots=8, routing="somebody's file")),
        replace(CACHED, cache=CacheKnobs(slots=8, interval_tokens=3)),
        replace(CACHED, cache=CacheKnobs(slots=8, half_life_tokens=0.0)),
        replace(CACHED, cache=CacheKnobs(slots=8, policy=Policy.STATIC)),
    ],
)
def test_a_foreign_configuration_does_not(foreign: EngineConfig) -> None:
    """One setting that this search could not have tried is enough."""
    assert belongs(CACHED, SPACE)
    assert not belongs(foreign, SPACE)


def test_recorded_routing_is_this_machines_copy(tmp_path: Path) -> None:
    """Machines keep it in different places; to them a configuration with it is the same."""
    ours = space_in(tmp_path, routing="ours")
    theirs = replace(CACHED, cache=CacheKnobs(slots=8, routing="theirs"))
    mine = here(theirs, ours)
    assert mine.cache == CacheKnobs(slots=8, routing="ours")
    assert belongs(mine, ours)
    assert digest_of(mine) == digest_of(theirs) != digest_of(CACHED)
