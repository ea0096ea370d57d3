"""Published measurements, the models and machines they were made with, and what the cost model predicts for them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from scipy.optimize import brentq
from tabulate import tabulate

from moetune.autotune.cost import CostModel, cost_model
from moetune.autotune.memory import MemoryModel
from moetune.autotune.space import cache_off
from moetune.autotune.tier import choose_tiers
from moetune.autotune.trace import RequestShape
from moetune.engine.config import CacheKnobs, EngineConfig, KvType
from moetune.engine.model import Layer, Model
from moetune.hardware.machine import Machine
from moetune.hardware.machine_file import CpuPart, DescribedMachine, GpuPart, RamPart, machine_of

FOLDER = Path(__file__).parent / "published"
_HEAD = 128
_KEY_HEADS = 16


def models() -> dict[str, dict[str, Any]]:
    """Shapes by name."""
    return yaml.safe_load((FOLDER / "models.yaml").read_text())  # type: ignore[no-any-return]


def rows() -> list[dict[str, Any]]:
    """Published rows, in the file's order."""
    return yaml.safe_load((FOLDER / "rows.yaml").read_text())  # type: ignore[no-any-return]


def model_of(name: str, shape: dict[str, Any], expert_bits: float, dense_bits: float) -> Model:
    """What llama.cpp would load: weights counted from the shape, bytes from the bits a weight takes."""
    layers = tuple(_layer(index, shape, expert_bits, dense_bits) for index in range(shape["layers"]))
    embedding = int(shape["vocab"] * shape["embd"] * dense_bits / 8)
    total = sum(layer.routed_bytes + layer.dense_bytes for layer in layers) + 2 * embedding
    return Model(
        paths=(Path(f"/models/{name}.gguf"),),
        name=name,
        architecture="qwen35moe",
        quant=f"{expert_bits} bits",
        n_layers=shape["layers"],
        n_expert=shape["experts"],
        n_expert_used=shape["used"],
        n_embd=shape["embd"],
        n_head=shape["heads"],
        n_vocab=shape["vocab"],
        context_length=262_144,
        is_mla=False,
        layers=layers,
        embedding_bytes=embedding,
        output_bytes=embedding,
        other_bytes=0,
        tensor_bytes=total,
        file_bytes=total,
        has_chat_template=False,
        fingerprint=name,
    )


def _layer(index: int, shape: dict[str, Any], expert_bits: float, dense_bits: float) -> Layer:
    embd, attends = shape["embd"], (index + 1) % shape["attending_every"] == 0
    values, keys = shape["recurrent_heads"] * _HEAD, _KEY_HEADS * _HEAD
    kv = shape["kv_heads"] * shape["head_dim"]
    # Attention has a gate beside its queries; DeltaNet projects keys twice, values and their gate, and back.
    attention = embd * (3 * shape["heads"] * shape["head_dim"] + 2 * kv)
    recurrent = embd * (2 * keys + 3 * values + 2 * shape["recurrent_heads"])
    shared = 3 * embd * shape["shared_ff"] + embd * shape["experts"]
    expert, dense = 3 * embd * shape["ff"], (attention if attends else recurrent) + shared
    expert_bytes = int(expert * expert_bits / 8)
    return Layer(
        index=index,
        expert_bytes=expert_bytes,
        routed_bytes=expert_bytes * shape["experts"],
        dense_bytes=int(dense * dense_bits / 8),
        k_values=kv if attends else 0,
        v_values=kv if attends else 0,
        head_dim_k=shape["head_dim"],
        head_dim_v=shape["head_dim"],
        state_values=0 if attends else values * _HEAD,
        expert_weights=expert,
        dense_weights=dense,
    )


def machine_for(row: dict[str, Any]) -> Machine:
    """The row's machine as a machine file would describe it."""
    told = row["machine"]
    gpu = GpuPart(name="card", vram_gib=told["vram_gib"], gbps=float(told["gbps"]), link_gbps=float(told["link_gbps"]))
    return machine_of(
        DescribedMachine(
            cpu=CpuPart(cores=told["cpu"]), ram=RamPart(gib=told["ram_gib"], gbps=told["ram_gbps"]), gpus=(gpu,)
        )
    )


@dataclass(frozen=True)
class Held:
    """A published speed beside its predictions, tok/s.

    without_cost: where a layer with slots cost nothing beside the hand-over, as on the emulated device; None for rows
    without a cache.
    """

    name: str
    measured: float
    predicted: float
    without_cost: float | None

    @property
    def error(self) -> float:
        """Of the speed; positive where the prediction is too fast."""
        return self.predicted / self.measured - 1


def cost_of(row: dict[str, Any]) -> tuple[CostModel, EngineConfig]:
    """The cost model of the row's model on its machine, and the row's configuration."""
    model = model_of(row["model"], models()[row["model"]], row["expert_bits"], row["dense_bits"])
    machine = machine_for(row)
    tier = next(iter(choose_tiers(machine, None)), None)
    memory = MemoryModel(model, tier, machine.memory.available_bytes)
    cost = cost_model(model, machine, memory, RequestShape(row["position"], 1, 0, scaled=False))
    config = EngineConfig(
        n_ctx=max(4096, row["position"] + 1),
        n_threads=machine.cpu.physical_cores,
        type_k=KvType(row["kv"]),
        type_v=KvType(row["kv"]),
        device=tier.name if tier else None,
        gpu_layers=model.n_layers + 1,
        ram_expert_layers=row.get("ram_expert_layers", model.n_layers),
        repack=False,
    )
    if "slots" in row:
        config = replace(cache_off(config, tier), cache=CacheKnobs(slots=row["slots"]))
    if "hit_rate" in row:
        cost = with_hit_rate(cost, row["slots"], row["hit_rate"])
    return cost, config


def with_hit_rate(cost: CostModel, slots: int, rate: float) -> CostModel:
    """The same, with so many hits at so many slots."""
    return replace(cost, hits=replace(cost.hits, shift=cost.hits.shift_to(slots, rate)))


def with_cached_layer(cost: CostModel, cached_s: float) -> CostModel:
    """The same, with another cost of a layer with slots."""
    return replace(cost, figures=replace(cost.figures, cached_s=cached_s))


def implied_cached_s() -> float:
    """What a layer with slots costs where a cache is as fast as none at the hit rate that one fork states."""
    row = next(row for row in rows() if "break_even" in row)
    cost, config = cost_of(row)
    uncached = replace(config, cache=None)
    at_break_even = with_hit_rate(cost, row["slots"], row["break_even"])
    without_s = 1 / cost.predict(uncached).tg_tps

    def slower(cached_s: float) -> float:
        return 1 / with_cached_layer(at_break_even, cached_s).predict(config).tg_tps - without_s

    return float(brentq(slower, 0.0, 0.01))


def held() -> list[Held]:
    """Every row with its predictions."""
    found = []
    for row in rows():
        cost, config = cost_of(row)
        without = with_cached_layer(cost, 0.0).predict(config).tg_tps if "slots" in row else None
        found.append(Held(row["name"], row["measured_tps"], cost.predict(config).tg_tps, without))
    return found


def table() -> str:
    """As it stands in docs/plan.md."""
    cells = [
        (
            row.name,
            f"{row.measured:g}",
            f"{row.predicted:.1f}",
            f"{row.error:+.0%}",
            "" if row.without_cost is None else f"{row.without_cost:.1f}",
        )
        for row in held()
    ]
    headers = ("row", "measured", "predicted", "error", "without the cost of a cached layer")
    return tabulate(cells, headers=headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    print(table())
    print(f"a cached layer: {implied_cached_s() * 1e6:.0f} us")
