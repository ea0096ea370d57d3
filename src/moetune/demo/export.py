"""Turns trained weights into ``demo.gguf`` and measures the file itself for ``card.json``.

``python -m moetune.demo.export DIR`` repeats this on a folder that training has written.
"""

import argparse
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, TokenType, quants
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from moetune.demo.measure import StockModel, bits_per_byte, lru_hit_rate, top_share
from moetune.demo.network import Network, Shape

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 2048
# Nothing was trained on turns, so the template only joins the messages.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
_SCORED_TOKENS = 32_768
_COMPARED_TOKENS = 512
_HOT, _SLOTS = 6, 8


@dataclass(frozen=True)
class Agreement:
    """The file in llama.cpp against the same dequantised weights in PyTorch, on the same tokens."""

    tokens: int
    mean_absolute_logit_difference: float
    same_best_token: float
    tokenised_alike: bool


def export(folder: Path) -> None:
    """Writes ``demo.gguf`` and ``card.json`` beside what training left in ``folder``."""
    facts = json.loads((folder / "train.json").read_text())
    shape = Shape(**facts["config"]["shape"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights: dict[str, Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    held_out: dict[str, Tensor] = torch.load(folder / "held_out.pt", weights_only=True)
    model = folder / "demo.gguf"
    write_gguf(model, shape, weights, tokenizer)
    streams = {name: ids.tolist() for name, ids in held_out.items()}
    card = make_card(model, facts, shape, streams, tokenizer)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


def write_gguf(path: Path, shape: Shape, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """A qwen3moe file: experts in Q4_0, other matrices in Q8_0, norms and routers in F32."""
    writer = GGUFWriter(path, "qwen3moe")
    writer.add_name("moetune demo")
    writer.add_description("A small Mixture-of-Experts model of program source and manual pages, for trying moetune")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.expert_ff * shape.used)
    writer.add_expert_feed_forward_length(shape.expert_ff)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.used)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(2)
    _add_tokenizer(writer, tokenizer)
    for name, (tensor, quant) in _tensors(shape, weights).items():
        writer.add_tensor(name, quants.quantize(tensor, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(shape: Shape, weights: dict[str, Tensor]) -> dict[str, tuple[NDArray[np.float32], GGMLQuantizationType]]:
    f32, q8, q4 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
    named: dict[str, tuple[Tensor, GGMLQuantizationType]] = {
        "token_embd": (weights["embed"], q8),
        "output_norm": (weights["norm"], f32),
        "output": (weights["head"], q8),
    }
    for layer in range(shape.layers):
        source, block = f"blocks.{layer}", f"blk.{layer}"
        gate, up = weights[f"{source}.ffn.gate_up"].chunk(2, dim=1)
        named |= {
            f"{block}.attn_norm": (weights[f"{source}.attn_norm"], f32),
            f"{block}.attn_q": (weights[f"{source}.attn.q"], q8),
            f"{block}.attn_k": (weights[f"{source}.attn.k"], q8),
            f"{block}.attn_v": (weights[f"{source}.attn.v"], q8),
            f"{block}.attn_q_norm": (weights[f"{source}.attn.q_norm"], f32),
            f"{block}.attn_k_norm": (weights[f"{source}.attn.k_norm"], f32),
            f"{block}.attn_output": (weights[f"{source}.attn.out"], q8),
            f"{block}.ffn_norm": (weights[f"{source}.ffn_norm"], f32),
            f"{block}.ffn_gate_inp": (weights[f"{source}.ffn.router"], f32),
            f"{block}.ffn_gate_exps": (gate, q4),
            f"{block}.ffn_up_exps": (up, q4),
            f"{block}.ffn_down_exps": (weights[f"{source}.ffn.down"], q4),
        }
    return {f"{name}.weight": (tensor.float().contiguous().numpy(), q) for name, (tensor, q) in named.items()}


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    end = vocabulary[END_OF_TEXT]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t == END_OF_TEXT else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def make_card(
    model: Path, facts: dict[str, Any], shape: Shape, held_out: dict[str, list[int]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Everything worth knowing about the file, measured on the file. The card is JSON."""
    with StockModel(model, context=CONTEXT) as stock:
        scored = {name: ids[: _SCORED_TOKENS + 1] for name, ids in held_out.items()}
        scores = {name: bits_per_byte(stock, ids) for name, ids in scored.items()}
        deep_scores = {name: bits_per_byte(stock, ids, window=CONTEXT) for name, ids in scored.items()}
        experts = {name: _routes(stock, ids[:_SCORED_TOKENS]) for name, ids in held_out.items()}
        agreement = compare(model, stock, shape, held_out, tokenizer)
    return {
        "file": model.name,
        "bytes": model.stat().st_size,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "date": datetime.now(UTC).date().isoformat(),
        "architecture": "qwen3moe",
        "parameters": sum(int(np.prod(t.shape)) for t in GGUFReader(model).tensors),
        "storage": {"experts": "Q4_0", "other_matrices": "Q8_0", "norms_and_routers": "F32"},
        "context": CONTEXT,
        "training": facts["config"] | {"seconds": facts["seconds"]},
        "data": {
            "code": "standard library sources of the Python interpreter, without tests and generated tables",
            "prose": "manual pages, common licences, package copyright files and Python's language reference",
            "held_out": "one file in twenty, by the hash of its name",
            "documents": facts["documents"],
            "train_tokens": facts["train_tokens"],
            "held_out_tokens": facts["held_out_tokens"],
        },
        "held_out_bits_per_byte": {
            "scored_tokens": _SCORED_TOKENS,
            "window_tokens": 256,
            "before_quantisation_in_pytorch": _rounded(facts["held_out_bits_per_byte"]),
            "this_file_in_llama_cpp": _rounded(scores),
            f"this_file_in_windows_of_{CONTEXT}": _rounded(deep_scores),
        },
        "routing": {
            f"share_of_top_{_HOT}_experts_by_layer": {
                name: [round(top_share(ids, _HOT, shape.experts), 3) for ids in layers]
                for name, layers in experts.items()
            },
            f"lru_{_SLOTS}_hit_rate_by_layer": {
                name: [round(lru_hit_rate(ids, _SLOTS), 3) for ids in layers] for name, layers in experts.items()
            },
            f"hottest_{_SLOTS}_shared_by_workloads_by_layer": _shared_favourites(list(experts.values())),
        },
        "agreement_with_pytorch": dataclasses.asdict(agreement),
    }


def compare(
    model: Path, stock: StockModel, shape: Shape, held_out: dict[str, list[int]], tokenizer: Tokenizer
) -> Agreement:
    """Runs the file's own weights through PyTorch, and both tokenizers over the same held-out text."""
    network = network_of(model, shape)
    differences, same, alike, count = 0.0, 0, True, 0
    for ids in held_out.values():
        tokens = ids[:_COMPARED_TOKENS]
        ours = stock.decode(tokens).logits
        with torch.no_grad():
            theirs = network(torch.tensor([tokens]))[0][0].numpy()
        differences += float(np.abs(ours - theirs).mean())
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        count += len(tokens)
        text = tokenizer.decode(ids[:_SCORED_TOKENS], skip_special_tokens=True)
        alike = alike and stock.tokenise(text) == tokenizer.encode(text).ids
    return Agreement(count, round(differences / len(held_out), 4), round(same / count, 4), alike)


def network_of(model: Path, shape: Shape) -> Network:
    """The network with the file's dequantised weights."""
    stored = {t.name: quants.dequantize(t.data, t.tensor_type) for t in GGUFReader(model).tensors}
    tensors = {name.removesuffix(".weight"): torch.from_numpy(data.copy()) for name, data in stored.items()}
    state = {"embed": tensors["token_embd"], "norm": tensors["output_norm"], "head": tensors["output"]}
    renamed = {
        "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "ffn.router": "ffn_gate_inp", "ffn.down": "ffn_down_exps",
        "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.out": "attn_output",
        "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm",
    }  # fmt: skip
    for layer in range(shape.layers):
        for ours, theirs in renamed.items():
            state[f"blocks.{layer}.{ours}"] = tensors[f"blk.{layer}.{theirs}"]
        gate_up = [tensors[f"blk.{layer}.ffn_{part}_exps"] for part in ("gate", "up")]
        state[f"blocks.{layer}.ffn.gate_up"] = torch.cat(gate_up, dim=1)
    network = Network(shape)
    network.load_state_dict(state)
    return network.eval()


def _routes(stock: StockModel, tokens: list[int], window: int = 256) -> list[NDArray[np.int32]]:
    """Expert ids [tokens, used] by layer, over windows that start from nothing."""
    parts = [stock.decode(tokens[start : start + window]).experts for start in range(0, len(tokens), window)]
    return [np.concatenate([part[layer] for part in parts]) for layer in sorted(parts[0])]


def _shared_favourites(workloads: list[list[NDArray[np.int32]]]) -> list[int]:
    hottest = [[set(np.argsort(-np.bincount(ids.ravel()))[:_SLOTS].tolist()) for ids in layers] for layers in workloads]
    return [len(set.intersection(*by_workload)) for by_workload in zip(*hottest, strict=True)]


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(score, 3) for name, score in scores.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that training wrote")
    export(parser.parse_args().folder)


if __name__ == "__main__":
    main()
