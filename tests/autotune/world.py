"""A small world to search in: one MoE model, one dense one, and machines with and without a fast tier."""

from dataclasses import replace
from pathlib import Path

from fake_runner import FakeRunner, Landscape

from moetune.autotune.memory import MemoryModel
from moetune.autotune.memory import memory_of as predicted_memory
from moetune.autotune.request import SearchRequest
from moetune.engine.model import Layer, Model
from moetune.hardware.conditions import Conditions
from moetune.hardware.machine import Cpu, DeviceKind, GgmlDevice, Machine, Memory, Software
from moetune.profiles.workload import Workload

MIB = 1 << 20
WORKLOAD = Workload(
    name="tiny",
    description="A short request",
    depth_tokens=64,
    prompt_tokens=128,
    reply_tokens=64,
    texts=("The quick brown fox jumps over the lazy dog. " * 4, "def f(x):\n    return x\n"),
    sample_prompt="Hello",
)


def moe_model(**changes: object) -> Model:
    """8 layers of 64 experts of 2 MiB each: 1,024 MiB of experts, 160 MiB of everything else."""
    layers = tuple(
        Layer(
            index=i,
            expert_bytes=2 * MIB,
            routed_bytes=128 * MIB,
            dense_bytes=10 * MIB,
            k_values=512,
            v_values=512,
            head_dim_k=128,
            head_dim_v=128,
            state_values=0,
            expert_weights=4 * MIB,
            dense_weights=10 * MIB,
        )
        for i in range(8)
    )
    model = Model(
        paths=(Path("/models/small-moe.gguf"),),
        name="Small MoE",
        architecture="qwen3moe",
        quant="Q4_0",
        n_layers=8,
        n_expert=64,
        n_expert_used=4,
        n_embd=1024,
        n_head=8,
        n_vocab=32_000,
        context_length=32_768,
        is_mla=False,
        layers=layers,
        embedding_bytes=40 * MIB,
        output_bytes=40 * MIB,
        other_bytes=4096,
        tensor_bytes=1024 * MIB + 160 * MIB + 4096,
        file_bytes=1200 * MIB,
        has_chat_template=False,
        fingerprint="model-1",
    )
    return replace(model, **changes)  # type: ignore[arg-type]


def dense_model() -> Model:
    """The same layers without experts."""
    layers = tuple(
        replace(layer, expert_bytes=0, routed_bytes=0, dense_bytes=138 * MIB) for layer in moe_model().layers
    )
    return moe_model(name="Dense", architecture="llama", n_expert=0, n_expert_used=0, layers=layers)


def gpu(memory_mib: int, name: str = "CUDA0", description: str = "NVIDIA Something") -> GgmlDevice:
    return GgmlDevice(name, description, DeviceKind.GPU, memory_mib * MIB, memory_mib * MIB, None)


def machine_with(*devices: GgmlDevice, ram_mib: int = 16_384) -> Machine:
    """8 cores, 16 threads, RAM as told, and these devices beside the CPU."""
    cpu = GgmlDevice("CPU", "A CPU", DeviceKind.CPU, ram_mib * MIB, ram_mib * MIB, None)
    return Machine(
        cpu=Cpu("A CPU", "x86_64", 8, 16, 16, ("avx2",), None),
        memory=Memory(ram_mib * MIB, ram_mib * MIB, 0, 0, None, None, 16, ()),
        devices=(*devices, cpu),
        gpus=(),
        links=(),
        disk=None,
        software=Software("Linux", "6.1", "0.3.36", "0.25.3", "0c1e57098"),
        probed_at="2026-01-01T00:00:00Z",
        measured_at=None,
        missing=(),
    )


def still() -> Conditions:
    """A machine on which nothing else happens."""
    return Conditions(0.0, 0.0, 0.0, 8, None, False, 0, 0, 1 << 34, 1 << 34, ())


def request_for(state_dir: Path, **changes: object) -> SearchRequest:
    request = SearchRequest(workload=WORKLOAD, n_ctx=2048, state_dir=state_dir, engine_version="engine 1", n_trials=16)
    return replace(request, **changes)  # type: ignore[arg-type]


def memory_of(machine: Machine, model: Model, device: str | None = None) -> MemoryModel:
    return predicted_memory(model, machine, device)


def runner_for(machine: Machine, model: Model, landscape: Landscape, device: str | None = None) -> FakeRunner:
    return FakeRunner(landscape, memory_of(machine, model, device))
