"""The demo model as PyTorch sees it: the qwen3moe arithmetic of llama.cpp, written for training on a CPU."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network, in the field's words. Widths are in elements."""

    vocab: int = 2048
    embd: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 32
    used: int = 4
    expert_ff: int = 96
    rms_eps: float = 1e-6
    rope_base: float = 10_000.0


class _Permute(torch.autograd.Function):
    """Rows in another order. Autograd's own backward would scatter-add; a permutation only needs its inverse."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0].index_select(0, inverse), None, None


def _matrix(*size: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*size) * (gain / math.sqrt(size[-1])))


def rotation(length: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[length, head_dim]`` of NEOX-style RoPE: dimension i turns with i + head_dim / 2."""
    half = shape.head_dim // 2
    frequency = shape.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with per-head RMS norms on queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = _matrix(shape.heads * shape.head_dim, shape.embd)
        self.k = _matrix(shape.kv_heads * shape.head_dim, shape.embd)
        self.v = _matrix(shape.kv_heads * shape.head_dim, shape.embd)
        self.out = _matrix(shape.embd, shape.heads * shape.head_dim, gain=1 / math.sqrt(2 * shape.layers))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s = self.shape
        rows, length, _ = x.shape
        q = F.linear(x, self.q).view(rows, length, s.heads, s.head_dim).transpose(1, 2)
        k = F.linear(x, self.k).view(rows, length, s.kv_heads, s.head_dim).transpose(1, 2)
        v = F.linear(x, self.v).view(rows, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q = _rotate(F.rms_norm(q.float(), (s.head_dim,), self.q_norm, s.rms_eps), cos, sin).to(v.dtype)
        k = _rotate(F.rms_norm(k.float(), (s.head_dim,), self.k_norm, s.rms_eps), cos, sin).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), self.out)


class RoutedFFN(nn.Module):
    """Softmax router, top-k experts with SwiGLU, weights of the chosen experts normalised to one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.router = _matrix(shape.experts, shape.embd, gain=0.3)
        # Gate over up in one matrix: one product an expert instead of two.
        self.gate_up = _matrix(shape.experts, 2 * shape.expert_ff, shape.embd)
        self.down = _matrix(shape.experts, shape.embd, shape.expert_ff, gain=2 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` is [tokens, embd]; returns the output, the balance loss (1 when flat) and the ids [tokens, used]."""
        s = self.shape
        with torch.autocast("cpu", enabled=False):
            probability = F.softmax(F.linear(x.float(), self.router), dim=-1)
        weight, ids = probability.topk(s.used, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)

        order = ids.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel()))
        counts = torch.bincount(ids.flatten(), minlength=s.experts)
        repeated = x.unsqueeze(1).expand(-1, s.used, -1).reshape(-1, s.embd)
        rows: Tensor = _Permute.apply(repeated, order, inverse)  # type: ignore[no-untyped-call]
        outputs = []
        chunks = torch.split(rows, counts.tolist())
        gate_ups = self.gate_up.to(rows.dtype).unbind(0)
        downs = self.down.to(rows.dtype).unbind(0)
        for chunk, gate_up, down in zip(chunks, gate_ups, downs, strict=True):
            gate, up = F.linear(chunk, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down))
        back: Tensor = _Permute.apply(torch.cat(outputs), inverse, order)  # type: ignore[no-untyped-call]
        mixed = (back.view(-1, s.used, s.embd) * weight.unsqueeze(-1).to(back.dtype)).sum(1)

        share = counts.float() / ids.numel()
        return mixed, s.experts * (share * probability.mean(0)).sum(), ids


class Block(nn.Module):
    """One layer: attention and routed FFN, each behind an RMS norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(shape.embd))
        self.ffn_norm = nn.Parameter(torch.ones(shape.embd))
        self.attn = Attention(shape)
        self.ffn = RoutedFFN(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.shape
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x = x + self.attn(F.rms_norm(x, (s.embd,), self.attn_norm, s.rms_eps).to(half), cos, sin)
        normed = F.rms_norm(x, (s.embd,), self.ffn_norm, s.rms_eps).to(half)
        mixed, balance, ids = self.ffn(normed.view(-1, s.embd))
        return x + mixed.view_as(x), balance, ids


class Network(nn.Module):
    """Token ids [rows, length] to logits [rows, length, vocab], the mean balance loss, and expert ids by layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.embd) * 0.1)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.embd))
        self.head = _matrix(shape.vocab, shape.embd, gain=0.3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        s = self.shape
        cos, sin = rotation(tokens.shape[1], s)
        x = F.embedding(tokens, self.embed)
        balances, ids = [], []
        for block in self.blocks:
            x, balance, chosen = block(x, cos, sin)
            balances.append(balance)
            ids.append(chosen)
        x = F.rms_norm(x, (s.embd,), self.norm, s.rms_eps)
        return F.linear(x, self.head), torch.stack(balances).mean(), ids
