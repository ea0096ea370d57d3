"""What fits a machine, against the memory model that a search uses; one more of anything does not fit."""

from dataclasses import replace

import pytest
from world import MIB, dense_model, gpu, machine_with, memory_of, moe_model

from moetune.autotune.inspection import Room, inspect_model
from moetune.autotune.inspection_table import inspection_table
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.model import Model

CTX = 4096


def room(model: Model, memory_mib: int) -> tuple[Room, EngineConfig]:
    """What one card holds, and the configuration with every dense part on it."""
    found = inspect_model(model, machine_with(gpu(memory_mib)), None, CTX).rooms[0]
    config = EngineConfig(n_ctx=CTX, n_threads=8, n_ubatch=found.n_ubatch, device="CUDA0", gpu_layers=9)
    return found, replace(config, ram_expert_layers=8)


@pytest.mark.parametrize("memory_mib", [900, 1200, 1500])
def test_one_more_of_anything_does_not_fit(memory_mib: int) -> None:
    """Layers, experts of layers and slots are each the most that the memory model lets through."""
    model = moe_model()
    memory = memory_of(machine_with(gpu(memory_mib)), model)
    found, dense = room(model, memory_mib)
    assert found.expert_layers is not None
    assert found.slots is not None
    assert 0 < found.layers < 9
    assert 0 < found.expert_layers < 8
    assert 0 < found.slots < 64
    fits = {
        extra: [
            memory.fits_fast(replace(dense, gpu_layers=found.layers + extra, ram_expert_layers=0)),
            memory.fits_fast(replace(dense, ram_expert_layers=8 - found.expert_layers - extra)),
            memory.fits_fast(replace(dense, cache=CacheKnobs(slots=found.slots + extra))),
        ]
        for extra in (0, 1)
    }
    assert fits == {0: [True] * 3, 1: [False] * 3}


def test_a_card_too_small_for_the_dense_parts_holds_no_experts() -> None:
    """Nothing to count then: neither layers' experts nor slots."""
    found, _ = room(moe_model(), 500)
    assert (found.expert_layers, found.slots) == (None, None)
    assert "–" in inspection_table(inspect_model(moe_model(), machine_with(gpu(500)), None, CTX))


def test_a_card_that_holds_everything() -> None:
    """All layers with their experts, and a slot for each expert."""
    found, _ = room(moe_model(), 24_576)
    assert (found.layers, found.expert_layers, found.slots) == (9, 8, 64)


def test_every_card_is_looked_at_by_itself() -> None:
    """The largest first."""
    machine = machine_with(gpu(1200), gpu(24_576, "CUDA1"))
    found = inspect_model(moe_model(), machine, None, CTX)
    assert [(room.device, room.n_ubatch) for room in found.rooms] == [
        (device, size) for device in ("CUDA1", "CUDA0") for size in (512, 64)
    ]
    assert found.rooms[0].layers == 9
    assert found.rooms[2] == room(moe_model(), 1200)[0]


def test_smaller_micro_batches_leave_room_for_more() -> None:
    """Their buffers are smaller."""
    usual, least = inspect_model(moe_model(), machine_with(gpu(900)), None, CTX).rooms
    assert usual.slots is not None
    assert least.slots is not None
    assert least.slots > usual.slots


def test_the_longest_context_is_the_last_that_fits() -> None:
    """A quarter of a thousand positions more are too many; smaller KV types reach further."""
    model, machine = moe_model(context_length=1 << 20), machine_with(gpu(1200))
    memory = memory_of(machine, model)
    found = {
        (longest.placement, longest.kv): longest.n_ctx for longest in inspect_model(model, machine, None, CTX).longest
    }
    n_ctx = found["CUDA0: stock, experts in RAM", KvType.F16]
    dense = replace(room(model, 1200)[1], n_ubatch=64)
    assert memory.fits_fast(replace(dense, n_ctx=n_ctx))
    assert not memory.fits_fast(replace(dense, n_ctx=n_ctx + 256))
    assert found["CUDA0: stock, experts in RAM", KvType.Q8_0] > 1.5 * n_ctx
    assert found["stock, all on the CPU", KvType.F16] > n_ctx
    assert found["CUDA0: stock, all on the device", KvType.F16] == 0


def test_no_context_is_longer_than_the_model_was_made_for() -> None:
    """Also one that is no multiple of what llama.cpp rounds to; a model that does not say has no such limit."""
    machine = machine_with(ram_mib=1 << 20)
    for made_for, longest in ((1000, 1000), (32_768, 32_768), (0, 1 << 20)):
        found = inspect_model(moe_model(context_length=made_for), machine, None, 512)
        assert {each.n_ctx for each in found.longest} == {longest}


def test_a_dense_model_has_layers_only() -> None:
    """No experts to place and no slots, and the table says so without a zero that could be misread."""
    found, _ = room(dense_model(), 900)
    assert (found.expert_layers, found.slots) == (None, None)
    assert 0 < found.layers < 9


def test_every_byte_of_the_file_is_of_one_kind() -> None:
    """Tied embeddings are counted once, and read for a token as the output layer."""
    own = inspect_model(moe_model(), machine_with(), None, CTX)
    tied_model = moe_model(tensor_bytes=moe_model().tensor_bytes - 40 * MIB)
    tied = inspect_model(tied_model, machine_with(), None, CTX)
    for found in (own, tied):
        assert sum(part.file_bytes for part in found.parts) == found.model.tensor_bytes
        assert sum(part.read_bytes for part in found.parts if part.kind.startswith("output")) == 40 * MIB
    assert next(part.read_bytes for part in own.parts if part.kind == "routed experts") == 8 * 4 * 2 * MIB
