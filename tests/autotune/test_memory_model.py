"""Predicted memory: what lies where, and that experience is never forgotten."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from world import MIB, gpu, machine_with, memory_of, moe_model

from moetune.autotune.calibration import Calibration
from moetune.autotune.memory import require_memory
from moetune.autotune.tier import choose_tiers
from moetune.engine.config import CacheKnobs, EngineConfig, FlashAttention, KvType
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import DeviceKind

MACHINE = machine_with(gpu(4096))
MEMORY = memory_of(MACHINE, moe_model())
ALL_DENSE = EngineConfig(n_ctx=2048, n_threads=4, n_ubatch=64, device="CUDA0", gpu_layers=9, ram_expert_layers=8)


def known_bytes(config: EngineConfig) -> int:
    """The part of the fast tier's footprint that is not an estimate."""
    footprint = MEMORY.footprint(config)
    return footprint.fast_bytes - footprint.guessed_bytes


def kv_bytes(layers: int, tokens: int = 2048) -> int:
    return layers * tokens * 1024 * 2


def test_all_dense_parts_and_the_output_lie_on_the_device() -> None:
    """Experts and the token embedding stay in RAM."""
    assert known_bytes(ALL_DENSE) == (8 * 10 + 40) * MIB + 4096 + kv_bytes(8)


def test_the_output_layer_comes_first_then_the_last_layers() -> None:
    """llama.cpp's -ngl 1 is the output alone; -ngl 3 adds the last two layers, experts and KV included."""
    one = replace(ALL_DENSE, gpu_layers=1, ram_expert_layers=0)
    assert known_bytes(one) == 40 * MIB + 4096
    assert known_bytes(replace(one, gpu_layers=3)) == (40 + 2 * 138) * MIB + 4096 + kv_bytes(2)


def test_experts_of_the_first_layers_stay_in_ram() -> None:
    """ram_expert_layers counts from the front."""
    assert known_bytes(replace(ALL_DENSE, ram_expert_layers=6)) - known_bytes(ALL_DENSE) == 2 * 128 * MIB


def test_slots_cost_one_expert_in_every_layer_left_in_ram() -> None:
    """10 slots in 8 layers of 2 MiB, and little for padding."""
    off = replace(ALL_DENSE, cache=CacheKnobs(slots=0))
    ten = replace(ALL_DENSE, cache=CacheKnobs(slots=10))
    assert 160 * MIB <= known_bytes(ten) - known_bytes(off) < 161 * MIB
    fewer_layers = replace(ten, ram_expert_layers=4)
    assert 80 * MIB <= known_bytes(fewer_layers) - known_bytes(replace(off, ram_expert_layers=4)) < 81 * MIB


def test_a_quantised_cache_is_smaller() -> None:
    """q8_0 takes 8.5 bits for 16."""
    small = replace(ALL_DENSE, type_k=KvType.Q8_0, type_v=KvType.Q8_0)
    assert known_bytes(ALL_DENSE) - known_bytes(small) == pytest.approx(kv_bytes(8) * (1 - 8.5 / 16))


def test_plain_cpu_uses_no_fast_memory() -> None:
    """Everything lies in RAM."""
    footprint = MEMORY.footprint(EngineConfig(n_ctx=2048, n_threads=4))
    assert footprint.fast_bytes == 0
    assert footprint.host_bytes > moe_model().tensor_bytes + kv_bytes(8)


def test_what_is_on_the_device_is_not_in_ram() -> None:
    """Host bytes fall by what moves over."""
    on_cpu = MEMORY.footprint(EngineConfig(n_ctx=2048, n_threads=4, n_ubatch=64)).host_bytes
    moved = MEMORY.footprint(replace(ALL_DENSE, ram_expert_layers=0)).host_bytes
    assert on_cpu - moved > 1024 * MIB


PARTS = st.tuples(*[st.integers(0, 1 << 36)] * 3)


@given(st.lists(st.tuples(PARTS, st.integers(-(1 << 30), 1 << 36)), min_size=1, max_size=8))
def test_a_correction_never_goes_below_what_was_seen(seen: list[tuple[tuple[int, ...], int]]) -> None:
    """For every trial that ran, the corrected estimate covers what it measured."""
    calibration = Calibration()
    for parts, measured in seen:
        calibration = calibration.add(parts, measured)
    assert all(calibration.correct(parts) >= measured * (1 - 1e-9) for parts, measured in seen)


@given(st.lists(PARTS, min_size=1, max_size=8), PARTS, st.tuples(*[st.floats(0, 1)] * 3), st.integers(0, 1 << 30))
@example(
    [
        (0, 1, 99946),
        *((0, part, 0) for part in (26, 27, 28, 29)),
        (3, 1, 319553),
        (642512863, 68719476679, 254),
        (2487792689, 0, 0),
    ],
    (0, 0, 0),
    (0.5, 0.0, 0.0),
    1,
)
def test_a_correction_covers_a_driver_that_takes_a_share_of_each_part(
    tried: list[tuple[int, ...]], asked: tuple[int, ...], shares: tuple[float, ...], fixed: int
) -> None:
    """Whatever share of each part and fixed amount are really taken, no untried configuration gets less."""

    def taken(parts: tuple[int, ...]) -> int:
        # Rounded up: what is left of a byte in a small trial would be many bytes in a large one.
        return fixed + math.ceil(sum(share * part for share, part in zip(shares, parts, strict=True)))

    calibration = Calibration()
    for parts in tried:
        calibration = calibration.add(parts, taken(parts))
    assert calibration.correct(asked) >= taken(asked) * (1 - 1e-6) - 8


def test_a_larger_batch_is_not_believed_to_cost_what_others_did() -> None:
    """Two trials that differ in what the buffers do not hold say nothing of a batch twice as large."""
    calibration = Calibration().add((0, 30), 20).add((10, 30), 20)
    assert calibration.correct((30, 30)) == 40


def test_a_driver_that_takes_more_is_believed_at_once() -> None:
    """300 MiB of unforeseen driver memory raise the prediction by 300 MiB, also at another micro-batch."""
    predicted = MEMORY.footprint(ALL_DENSE).fast_bytes
    learnt = MEMORY.observe(ALL_DENSE, predicted + 300 * MIB)
    assert learnt.footprint(ALL_DENSE).fast_bytes >= predicted + 300 * MIB
    other = replace(ALL_DENSE, n_ubatch=512)
    assert learnt.footprint(other).fast_bytes >= MEMORY.footprint(other).fast_bytes + 300 * MIB


def test_careful_estimates_come_down_with_evidence() -> None:
    """Buffers measured at a quarter of their estimate leave room for more slots."""
    off = replace(ALL_DENSE, n_ubatch=2048, cache=CacheKnobs(slots=0))
    footprint = MEMORY.footprint(off)
    learnt = MEMORY.observe(off, footprint.fast_bytes - footprint.guessed_bytes * 3 // 4)
    assert learnt.footprint(off).fast_bytes < footprint.fast_bytes
    assert learnt.footprint(replace(off, cache=None)) == MEMORY.footprint(replace(off, cache=None))


def test_a_model_larger_than_all_memory_is_refused_with_figures() -> None:
    """1.2 GB do not fit into 600 MiB of RAM and 500 MiB of device."""
    memory = memory_of(machine_with(gpu(500), ram_mib=600), moe_model())
    config = replace(ALL_DENSE, device=None, gpu_layers=0)
    with pytest.raises(MoetuneError, match="600 MiB of RAM") as caught:
        require_memory(memory, config, allow_overcommit=False)
    assert caught.value.code is ExitCode.MEMORY
    require_memory(memory, config, allow_overcommit=True)


def test_a_real_device_is_preferred_to_an_emulated_one() -> None:
    """Unless the emulated one is named."""
    emulated = gpu(9000, "EMU0", "emulated accelerator")
    machine = machine_with(emulated, gpu(900))
    assert [tier.name for tier in choose_tiers(machine, None)] == ["CUDA0"]
    assert [tier.emulated for tier in choose_tiers(machine, "emu0")] == [True]


def test_an_unknown_device_names_the_known_ones() -> None:
    """The remedy lists what there is; "none" is plain CPU."""
    with pytest.raises(MoetuneError, match="CUDA0, CPU, none") as caught:
        choose_tiers(MACHINE, "Vulkan7")
    assert caught.value.code is ExitCode.DEVICE
    assert choose_tiers(MACHINE, "none") == ()


TWO = machine_with(gpu(1000), gpu(800, "CUDA1"))
SPLIT = replace(ALL_DENSE, more_devices=("CUDA1",), tensor_split=(6, 3))


def test_layers_of_several_devices_are_dealt_out_in_order() -> None:
    """Six layers' dense parts on the first, two and the output on the second, each with its KV cache."""
    footprint = memory_of(TWO, moe_model()).footprint(SPLIT)
    assert footprint.fast_bytes - footprint.guessed_bytes == 6 * 10 * MIB + kv_bytes(6)
    (second,) = footprint.more_bytes
    assert 0 <= second - ((2 * 10 + 40) * MIB + 4096 + kv_bytes(2)) <= footprint.guessed_bytes
    assert footprint.host_bytes == memory_of(TWO, moe_model()).footprint(ALL_DENSE).host_bytes


def test_the_fullest_device_decides_whether_a_configuration_fits() -> None:
    """Experts of the last three layers fit on the larger device and not on the smaller one."""
    memory = memory_of(TWO, moe_model())
    more = replace(SPLIT, ram_expert_layers=6)
    assert memory.fits_fast(more)
    assert not memory.fits_fast(replace(more, tensor_split=(4, 5), ram_expert_layers=4))
    assert memory.excess_bytes(replace(more, tensor_split=(1, 8), ram_expert_layers=1))[0] > 300 * MIB


def test_slots_count_on_the_device_that_holds_them() -> None:
    """The other one's memory is as before."""
    memory = memory_of(TWO, moe_model())
    swapped = replace(SPLIT, device="CUDA1", more_devices=("CUDA0",), cache=CacheKnobs(slots=0))
    ten = replace(swapped, cache=CacheKnobs(slots=10))
    assert memory.footprint(ten).fast_bytes - memory.footprint(swapped).fast_bytes >= 160 * MIB
    assert memory.footprint(ten).more_bytes == memory.footprint(swapped).more_bytes
    assert memory.slot_room(swapped) < memory.slot_room(replace(swapped, device="CUDA0", more_devices=("CUDA1",)))


def test_a_reserve_of_its_own_replaces_the_usual_one() -> None:
    """Half of a 4 GiB device kept free is room for slots no more."""
    bare = replace(ALL_DENSE, cache=CacheKnobs(slots=0))
    half = replace(bare, cache=CacheKnobs(slots=0, reserve_bytes=3500 * MIB))
    assert 0 < MEMORY.slots_that_fit(half) < MEMORY.slots_that_fit(bare)
    full = replace(half, cache=CacheKnobs(slots=MEMORY.slots_that_fit(half), reserve_bytes=3500 * MIB))
    assert MEMORY.footprint(full).fast_bytes <= (4096 - 3500) * MIB


def test_a_budget_in_bytes_counts_as_what_it_is() -> None:
    """Uneven slots take what they are given, and at most a page of padding a layer."""
    off, budget = CacheKnobs(slots=0, budget_bytes=0), CacheKnobs(slots=0, budget_bytes=100 * MIB)
    more_bytes = known_bytes(replace(ALL_DENSE, cache=budget)) - known_bytes(replace(ALL_DENSE, cache=off))
    assert 0 <= more_bytes - 100 * MIB <= 4096 * moe_model().n_layers


def test_packed_copies_for_misses_take_ram() -> None:
    """Another 128 MiB for every layer whose experts lie there."""
    plain, packed = (replace(ALL_DENSE, cache=CacheKnobs(slots=4, repack=repack)) for repack in (False, True))
    assert MEMORY.footprint(packed).host_bytes - MEMORY.footprint(plain).host_bytes == 8 * 128 * MIB


def test_without_flash_attention_scores_take_memory() -> None:
    """One f32 a head, a token of the batch and a position of the context."""
    off = replace(ALL_DENSE, flash_attn=FlashAttention.OFF)
    more = MEMORY.footprint(off).guessed_bytes - MEMORY.footprint(ALL_DENSE).guessed_bytes
    assert more == 8 * 64 * 2048 * 4


def test_all_gpus_are_taken_the_largest_first() -> None:
    """A GPU that two backends know is one, and one that shares RAM stands back."""
    twice = [replace(gpu(800, name), device_id="0000:01:00.0") for name in ("CUDA0", "Vulkan0")]
    shared = replace(gpu(9000, "Vulkan1"), kind=DeviceKind.IGPU)
    tiers = choose_tiers(machine_with(*twice, shared, gpu(900, "CUDA1"), gpu(9000, "EMU0", "emulated")), None)
    assert [tier.name for tier in tiers] == ["CUDA1", "CUDA0"]
    assert [tier.name for tier in choose_tiers(machine_with(shared), None)] == ["Vulkan1"]
    assert [tier.name for tier in choose_tiers(TWO, "cuda1, CUDA0")] == ["CUDA1", "CUDA0"]
    with pytest.raises(MoetuneError, match="CPU cannot be one of several"):
        choose_tiers(TWO, "CUDA0,CPU")
