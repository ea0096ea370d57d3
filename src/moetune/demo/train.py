"""Trains the demo model from text that lies on this machine: ``python -m moetune.demo.train --out DIR``.

Needs the extra ``moetune[train]`` (PyTorch, tokenizers), the manual pages, and half an hour on two CPU cores.
Writes ``tokenizer.json``, ``held_out.pt``, ``weights.pt`` and ``train.json`` into DIR, then ``demo.gguf`` and
``card.json``.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from moetune.demo.corpus import WORKLOADS, Document, read_corpus
from moetune.demo.export import END_OF_TEXT, export
from moetune.demo.network import Network, Shape


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result, apart from the text installed on the machine."""

    shape: Shape = field(default_factory=Shape)
    steps: int = 1400
    rows: int = 16
    length: int = 256
    # Every fourth step of the second half reads long windows, so that the model holds up at depth.
    long_length: int = 2048
    long_every: int = 4
    learning_rate: float = 2e-3
    final_rate_fraction: float = 0.02
    warmup_steps: int = 50
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    # Small on purpose: just enough that no expert dies, little enough that routing stays skewed.
    balance_weight: float = 0.002
    tokenizer_chars: int = 4_000_000
    held_out_tokens: int = 32_768
    threads: int = 2
    seed: int = 20


@dataclass(frozen=True)
class Streams:
    """Token ids of each workload, end to end, every document closed by the end-of-text token."""

    train: dict[str, Tensor]
    held_out: dict[str, Tensor]


def train_tokenizer(documents: list[Document], config: TrainConfig) -> Tokenizer:
    """A byte-level BPE that splits as llama.cpp's ``gpt-2`` pre-tokenizer does, fed equally from each workload."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.shape.vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = []
    for workload in WORKLOADS:
        left = config.tokenizer_chars
        texts = [d.text for d in documents if d.workload == workload and not d.held_out]
        for index in np.random.default_rng(config.seed).permutation(len(texts)):
            if left <= 0:
                break
            sample.append(texts[index][:left])
            left -= len(texts[index])
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def tokenise(documents: list[Document], tokenizer: Tokenizer, seed: int) -> Streams:
    """The documents in a fixed random order as one stream for each workload and side of the split."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    streams: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    for held_out, by_workload in streams.items():
        for workload in WORKLOADS:
            texts = [d.text for d in documents if d.workload == workload and d.held_out == held_out]
            order = np.random.default_rng(seed).permutation(len(texts))
            encoded = tokenizer.encode_batch([texts[i] for i in order])
            ids = np.concatenate([np.array([*e.ids, end], dtype=np.int64) for e in encoded])
            by_workload[workload] = torch.from_numpy(ids)
    return Streams(train=streams[False], held_out=streams[True])


def draw_batch(streams: dict[str, Tensor], rows: int, length: int, random: torch.Generator) -> Tensor:
    """Token ids [rows, length + 1]: the same number of random windows from each workload."""
    windows = []
    for stream in streams.values():
        for start in torch.randint(len(stream) - length - 1, (rows // len(streams),), generator=random).tolist():
            windows.append(stream[start : start + length + 1])
    return torch.stack(windows)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to a small final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_rate_fraction
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def bits_per_byte(network: Network, stream: Tensor, tokenizer: Tokenizer, length: int, tokens: int) -> float:
    """Mean code length of the stream's first ``tokens`` tokens, read in windows of ``length`` without overlap."""
    byte_counts = token_byte_counts(tokenizer)
    windows = stream[: min(tokens, len(stream) - 1) // length * length + 1]
    inputs, targets = windows[:-1].view(-1, length), windows[1:].view(-1, length)
    at_once = max(1, 4096 // length)
    nats = 0.0
    for rows, wanted in zip(torch.split(inputs, at_once), torch.split(targets, at_once), strict=True):
        logits, _, _ = network(rows)
        nats += F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum").item()
    return nats / math.log(2) / float(byte_counts[targets.flatten()].sum())


def token_byte_counts(tokenizer: Tokenizer) -> Tensor:
    """Bytes of text behind each token id; none behind the end of text."""
    counts = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        counts[index] = 0 if token == END_OF_TEXT else len(token)
    return counts


def make_optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; norms and embeddings are left out of the decay."""
    matrices = [p for name, p in network.named_parameters() if p.ndim > 1 and name != "embed"]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or name == "embed"]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def train(config: TrainConfig, out: Path) -> None:
    """Runs the whole training and writes its results into ``out``."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)

    documents = read_corpus()
    tokenizer = train_tokenizer(documents, config)
    tokenizer.save(str(out / "tokenizer.json"))
    streams = tokenise(documents, tokenizer, config.seed)
    _report_data(documents, streams)
    torch.save(streams.held_out, out / "held_out.pt")

    network = Network(config.shape)
    optimizer = make_optimizer(network, config)
    random = torch.Generator().manual_seed(config.seed)
    started = time.monotonic()
    for step in range(config.steps):
        loss, balance = train_step(network, optimizer, streams, step=step, config=config, random=random)
        if step % 20 == 0 or step == config.steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step} loss {loss:.3f} balance {balance:.2f} {seconds:.0f} s", flush=True)
        if step % 200 == 199:
            torch.save(network.state_dict(), out / "weights.pt")
    torch.save(network.state_dict(), out / "weights.pt")

    held_out = {
        workload: bits_per_byte(network.eval(), stream, tokenizer, config.length, config.held_out_tokens)
        for workload, stream in streams.held_out.items()
    }
    facts = {
        "config": asdict(config),
        "seconds": round(time.monotonic() - started),
        "train_tokens": {name: len(stream) for name, stream in streams.train.items()},
        "held_out_tokens": {name: len(stream) for name, stream in streams.held_out.items()},
        "documents": {name: sum(d.workload == name for d in documents) for name in WORKLOADS},
        "held_out_bits_per_byte": held_out,
    }
    (out / "train.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2), flush=True)


def train_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    streams: Streams,
    *,
    step: int,
    config: TrainConfig,
    random: torch.Generator,
) -> tuple[float, float]:
    """One update; returns the language loss in nats a token and the balance loss (1 when routing is flat)."""
    is_long = step >= config.steps // 2 and step % config.long_every == 0
    length = config.long_length if is_long else config.length
    batch = draw_batch(streams.train, config.rows * config.length // length, length, random)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, balance, _ = network(batch[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    (loss + config.balance_weight * balance).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item(), balance.item()


def _report_data(documents: list[Document], streams: Streams) -> None:
    for workload in WORKLOADS:
        count = sum(d.workload == workload for d in documents)
        megabytes = sum(len(d.text) for d in documents if d.workload == workload) / 1e6
        sides = f"{len(streams.train[workload])} train, {len(streams.held_out[workload])} held-out tokens"
        print(f"{workload}: {count} documents, {megabytes:.1f} M characters, {sides}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that training writes")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps, help="optimizer updates of 4,096 tokens")
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--threads", type=int, default=TrainConfig.threads)
    options = parser.parse_args()
    config = replace(TrainConfig(), steps=options.steps, seed=options.seed, threads=options.threads)
    train(config, options.out)
    export(options.out)


if __name__ == "__main__":
    main()
