"""Random LoRA adapters for a model file."""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

RANK = 4
_TENSORS = {
    "attention": ("attn_q.weight", "attn_v.weight", "attn_output.weight", "ffn_gate_inp.weight"),
    "experts": ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_up_exps.weight"),
    "down": ("ffn_down_exps.weight",),
}


def write_lora(path: Path, model: Path, kind: str, seed: int) -> None:
    """An adapter for the tensors that `kind` names, loud enough to change what the model says."""
    reader = GGUFReader(model)
    arch = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    adapted = 0
    for tensor in reader.tensors:
        if not tensor.name.endswith(_TENSORS[kind]):
            continue
        n_in, n_out, *experts = (int(n) for n in tensor.shape)  # ggml's order
        stack = tuple(experts)
        down = rng.standard_normal((*stack, RANK, n_in)) / np.sqrt(n_in)
        up = rng.standard_normal((*stack, n_out, RANK)) / np.sqrt(RANK) * 0.5
        writer.add_tensor(f"{tensor.name}.lora_a", down.astype(np.float32))
        writer.add_tensor(f"{tensor.name}.lora_b", up.astype(np.float32))
        adapted += 1
    assert adapted, f"{model.name} has no tensor for a LoRA of {kind}"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
