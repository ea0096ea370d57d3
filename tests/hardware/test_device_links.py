"""Links, measured on ggml's own CPU device as if it had memory of its own, and on the emulated accelerator."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moetune.hardware.devices import device_handle, read_devices
from moetune.hardware.ggml import load_ggml
from moetune.hardware.links import BULK_BYTES, measure_link
from moetune.hardware.machine import Bandwidth, DeviceKind, GgmlDevice, Link, reason_for
from moetune.hardware.matvec import measure_device_memory

MIB = 1 << 20


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load_ggml()


@pytest.fixture(scope="module")
def cpu_handle(library: ctypes.CDLL) -> int:
    kinds = [device.kind for device in read_devices(library)]
    return device_handle(library, kinds.index(DeviceKind.CPU))


def pretend(free_bytes: int) -> GgmlDevice:
    return GgmlDevice("PRETEND0", "a CPU", DeviceKind.GPU, free_bytes, free_bytes, None)


class Recorder:
    """Passes every call on to ggml and notes the arguments; ``replaced`` functions are answered here instead."""

    def __init__(self, library: ctypes.CDLL, **replaced: Callable[..., Any]) -> None:
        self.library = library
        self.replaced = replaced
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = self.replaced.get(name) or getattr(self.library, name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            return function(*arguments)

        return call

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


def assert_plausible(rate: Bandwidth | None) -> None:
    assert rate is not None
    assert 0 < rate.gbps_min <= rate.gbps <= rate.gbps_max
    assert rate.passes >= 1


def test_registry_lists_the_processor(library: ctypes.CDLL) -> None:
    """llama.cpp always has a CPU device, and it needs no link."""
    cpu = next(device for device in read_devices(library) if device.kind is DeviceKind.CPU)
    assert cpu.name == "CPU"
    assert cpu.memory_total_bytes > 0
    assert not cpu.has_link
    assert not cpu.emulated


def test_link_has_rates_at_both_sizes(library: ctypes.CDLL, cpu_handle: int) -> None:
    """Both directions, in bulk and one expert at a time, and the device's own memory."""
    link = measure_link(library, cpu_handle, pretend(512 * MIB), expert_bytes=MIB, budget_s=0.3)
    assert link.bulk is not None
    assert link.expert is not None
    assert link.expert.size_bytes == MIB
    assert MIB <= link.bulk.size_bytes <= BULK_BYTES
    for transfers in (link.bulk, link.expert):
        assert_plausible(transfers.h2d_pageable)
        assert_plausible(transfers.d2h_pageable)
    assert_plausible(link.device_memory)
    assert not link.emulated


def test_device_without_pinned_memory_says_so(library: ctypes.CDLL, cpu_handle: int) -> None:
    """None and a reason, not a pageable figure under a pinned name."""
    link = measure_link(library, cpu_handle, pretend(64 * MIB), budget_s=0.1)
    assert link.bulk is not None
    assert link.bulk.h2d_pinned is None
    assert reason_for(link.missing, "pinned") == "the device offers no pinned host memory"


def test_pinned_memory_is_timed_where_there_is_some(library: ctypes.CDLL, cpu_handle: int) -> None:
    """Stood in for by a buffer of the CPU's own type."""
    plain = library.ggml_backend_dev_buffer_type(cpu_handle)
    recorder = Recorder(library, ggml_backend_dev_host_buffer_type=lambda handle: plain)
    link = measure_link(recorder, cpu_handle, pretend(64 * MIB), budget_s=0.1)  # type: ignore[arg-type]
    assert link.bulk is not None
    assert_plausible(link.bulk.h2d_pinned)
    assert_plausible(link.bulk.d2h_pinned)
    assert link.missing == ()


def test_pageable_stand_in_is_not_taken_for_pinned_memory(library: ctypes.CDLL, cpu_handle: int) -> None:
    """Backends fall back to ordinary memory in silence when pinning fails."""
    plain = library.ggml_backend_dev_buffer_type(cpu_handle)
    recorder = Recorder(
        library,
        ggml_backend_dev_host_buffer_type=lambda handle: plain + 8,
        ggml_backend_buft_alloc_buffer=lambda kind, size: library.ggml_backend_buft_alloc_buffer(plain, size),
    )
    link = measure_link(recorder, cpu_handle, pretend(64 * MIB), budget_s=0.1)  # type: ignore[arg-type]
    assert link.bulk is not None
    assert link.bulk.h2d_pinned is None
    assert reason_for(link.missing, "pinned")


@pytest.mark.parametrize("free_bytes", [64 << 10, 1 * MIB, 3 * MIB + 7])
def test_tiny_device_is_measured_within_half_of_its_free_memory(
    library: ctypes.CDLL, cpu_handle: int, free_bytes: int
) -> None:
    """Sizes shrink to fit, and the link says which sizes were used."""
    taken: list[int] = []

    def allocate(context: int, kind: int) -> int:
        buffer: int = library.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        taken.append(get_size(buffer))
        return buffer

    get_size = ctypes.CDLL(library._name, handle=library._handle).ggml_backend_buffer_get_size
    get_size.restype, get_size.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    recorder = Recorder(library, ggml_backend_alloc_ctx_tensors_from_buft=allocate)
    link = measure_link(recorder, cpu_handle, pretend(free_bytes), budget_s=0.1)  # type: ignore[arg-type]
    # ggml rounds each tensor up to its alignment.
    assert max(taken) <= free_bytes // 2 + 256
    assert link.expert is not None
    assert link.expert.size_bytes == free_bytes // 2
    assert_plausible(link.expert.h2d_pageable)
    assert_plausible(link.device_memory)


@pytest.mark.parametrize("free_bytes", [0, 1000])
def test_full_device_is_left_alone(library: ctypes.CDLL, cpu_handle: int, free_bytes: int) -> None:
    """Not a byte is allocated where there is no room."""
    recorder = Recorder(library)
    link = measure_link(recorder, cpu_handle, pretend(free_bytes))  # type: ignore[arg-type]
    assert recorder.calls == []
    assert (link.bulk, link.expert, link.device_memory) == (None, None, None)
    assert reason_for(link.missing, "bulk") == f"only {free_bytes} B of device memory are free"


def test_refused_allocation_is_a_reason(library: ctypes.CDLL, cpu_handle: int) -> None:
    """Free memory may be gone between the question and the request."""
    recorder = Recorder(library, ggml_backend_alloc_ctx_tensors_from_buft=lambda context, kind: None)
    link = measure_link(recorder, cpu_handle, pretend(8 * MIB))  # type: ignore[arg-type]
    assert link.bulk is None
    assert reason_for(link.missing, "expert") == f"the device could not allocate {4 * MIB} B"


@pytest.mark.parametrize(
    ("function", "answer", "reason"),
    [
        ("ggml_backend_dev_init", None, "the device could not be initialised"),
        ("ggml_backend_dev_supports_op", False, "the device does not multiply F16 matrices"),
        ("ggml_backend_alloc_ctx_tensors_from_buft", None, "the device could not allocate 8388608 B"),
        ("ggml_backend_graph_compute", 1, "the device failed to compute a matrix-vector product"),
    ],
)
def test_device_memory_that_cannot_be_timed_gives_the_reason(
    library: ctypes.CDLL, cpu_handle: int, function: str, answer: Any, reason: str
) -> None:
    """Each way a device can refuse has words of its own, and everything taken is given back."""
    recorder = Recorder(library, **{function: lambda *arguments: answer})
    assert measure_device_memory(recorder, cpu_handle, 64 * MIB, 0.05) == reason  # type: ignore[arg-type]
    assert recorder.count("ggml_init") == recorder.count("ggml_free")
    assert recorder.count("ggml_backend_free") == (function != "ggml_backend_dev_init")


def test_everything_allocated_is_freed(library: ctypes.CDLL, cpu_handle: int) -> None:
    """A probe leaves the device as empty as it found it."""
    recorder = Recorder(library)
    measure_link(recorder, cpu_handle, pretend(64 * MIB), budget_s=0.1)  # type: ignore[arg-type]
    assert recorder.count("ggml_init") == recorder.count("ggml_free") > 0
    allocations = recorder.count("ggml_backend_alloc_ctx_tensors_from_buft")
    assert recorder.count("ggml_backend_buffer_free") == allocations > 0
    assert recorder.count("ggml_backend_dev_init") == recorder.count("ggml_backend_free") == 1


def test_one_expert_comes_from_a_new_place_each_time(library: ctypes.CDLL, cpu_handle: int) -> None:
    """Otherwise the processor's cache, not RAM, would be the source."""
    recorder = Recorder(library)
    measure_link(recorder, cpu_handle, pretend(512 * MIB), budget_s=0.2)  # type: ignore[arg-type]
    sources = [a[1] for name, a in recorder.calls if name == "ggml_backend_tensor_set" and a[3] == 4 * MIB]
    assert all(one != two for one, two in pairwise(sources))
    assert max(sources) - min(sources) < BULK_BYTES


EMULATOR = Path(
    os.environ.get("MOETUNE_EMULATOR_LIBRARY") or str(resources.files("moetune") / "engine/libemu_accel.so")
)

PROBE_WITH_EMULATOR = """
import ctypes, json, sys
from moetune.hardware.ggml import load_ggml
from moetune.hardware.probe import probe
library = load_ggml()
library.ggml_backend_load.restype, library.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
assert library.ggml_backend_load(sys.argv[1].encode())
print(json.dumps(probe(expert_bytes=1 << 20).to_dict()))
"""


def probe_with_emulator(**variables: str) -> dict[str, Any]:
    # In a process of its own: a device cannot be taken out of the registry again.
    done = subprocess.run(
        [sys.executable, "-c", PROBE_WITH_EMULATOR, str(EMULATOR)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    machine: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return machine


def link_of(machine: dict[str, Any]) -> dict[str, Any]:
    (link,) = machine["links"]
    assert link["device"] == "EMU0"
    assert set(link) == set(Link.__dataclass_fields__)
    return dict(link)


@pytest.mark.skipif(not EMULATOR.exists(), reason="the emulated accelerator is not built")
def test_emulated_link_is_measured_as_fast_as_it_was_told_to_be() -> None:
    """The throttle is a sleep of known length, so it is an upper bound that no busy machine can break."""
    machine = probe_with_emulator(EMU_LINK_GBPS="0.25", EMU_VRAM_MIB="64", EMU_VRAM_MB="64")
    link = link_of(machine)
    assert machine["emulated"] is True
    assert link["emulated"] is True
    assert "links" not in [gap["field"] for gap in machine["missing"]]
    assert 0.01 < link["bulk"]["h2d_pageable"]["gbps"] <= 0.26
    assert 0.01 < link["expert"]["d2h_pageable"]["gbps"] <= 0.26
    assert link["device_memory"]["gbps"] > 0


@pytest.mark.skipif(not EMULATOR.exists(), reason="the emulated accelerator is not built")
def test_emulated_device_of_two_mebibytes_is_measured() -> None:
    """The smallest devices make the cache interesting, so the probe must cope with them."""
    link = link_of(probe_with_emulator(EMU_VRAM_MIB="2", EMU_VRAM_MB="2"))
    assert link["bulk"]["size_bytes"] <= 1 << 20
    assert link["device_memory"]["gbps"] > 0
