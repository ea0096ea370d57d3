"""An inspection for people: 80 columns, a unit with every figure."""

import textwrap
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from moetune.autotune.inspection import Inspection, Room, expert_bytes
from moetune.autotune.plan_table import WIDTH, size

Row = tuple[str, ...]


def inspection_table(found: Inspection) -> str:
    """What the model is, where its bytes are, what a token of context costs, and what fits this machine."""
    return "\n\n".join([_about(found), _parts(found), _kv(found), _devices(found), _contexts(found)])


def _about(found: Inspection) -> str:
    return "\n".join(f"{name:<17} {text}" for name, text in _facts(found))


def _facts(found: Inspection) -> Iterator[Row]:
    model = found.model
    files = f" in {len(model.paths)} files" if len(model.paths) > 1 else ""
    yield "model", textwrap.shorten(model.name, WIDTH - 18, placeholder=" …")
    yield "architecture", f"{model.architecture}, {model.quant}, {size(model.file_bytes)}{files}"
    yield "fingerprint", model.fingerprint
    yield "layers", f"{model.n_layers}, {len(model.moe_layers)} of them with routed experts"
    if model.is_moe:
        least, most = map(size, expert_bytes(model))
        sizes = least if least == most else f"{least} to {most}"
        yield "routed experts", f"{model.n_expert} a layer, {model.n_expert_used} used for a token, {sizes} each"
    yield "width", f"{model.n_embd:,}; {model.n_head} heads; {model.n_vocab:,} tokens in the vocabulary"
    yield "made for", f"{model.context_length:,} tokens of context" if model.context_length else "it does not say"
    yield "chat template", "yes" if model.has_chat_template else "none"


def _parts(found: Inspection) -> str:
    whole = max(1, found.model.tensor_bytes)
    rows = [
        (part.kind, size(part.file_bytes), f"{part.file_bytes / whole:.0%}", size(part.read_bytes))
        for part in found.parts
        if part.file_bytes or part.read_bytes
    ]
    rows.append(("in all", size(found.model.tensor_bytes), "", size(sum(part.read_bytes for part in found.parts))))
    return _table(("weights", "in the file", "share", "read for a token"), rows)


def _kv(found: Inspection) -> str:
    rows = [
        (f"KV cache, {kind}", size(each), size(each * found.n_ctx)) for kind, each in found.kv_bytes_per_token.items()
    ]
    if found.state_bytes:
        rows.append(("recurrent state", "", size(found.state_bytes)))
    return _table(("context", "a token", f"{found.n_ctx:,} tokens"), rows)


def _devices(found: Inspection) -> str:
    model = found.model
    title = f"What fits at {found.n_ctx:,} tokens with KV f16; RAM: {size(found.ram_bytes)} available"
    if not found.rooms:
        return f"{title}\nNo GPU that llama.cpp can use: everything runs on the CPU."
    heads = ("device", "may use", "ubatch", "whole layers", "or experts of", "or slots")
    rows = [
        (
            room.device,
            size(room.limit_bytes),
            str(room.n_ubatch),
            f"{room.layers} of {model.n_layers + 1}",
            _count(room.expert_layers, len(model.moe_layers)),
            _count(room.slots, model.n_expert),
        )
        for room in found.rooms
    ]
    remarks = dict.fromkeys(_remark(room) for room in found.rooms)
    return "\n".join([title, _table(heads, rows), *(textwrap.fill(remark, WIDTH) for remark in remarks)])


def _remark(room: Room) -> str:
    return f"{room.device}: {room.description}{'; no real device' if room.emulated else ''}"


def _contexts(found: Inspection) -> str:
    kinds = list(dict.fromkeys(longest.kv for longest in found.longest))
    by_placement: dict[str, list[str]] = {}
    for longest in found.longest:
        by_placement.setdefault(longest.placement, []).append(f"{longest.n_ctx:,}" if longest.n_ctx else "does not fit")
    heads = ("longest context, tokens", *(f"KV {kind}" for kind in kinds))
    return _table(heads, [(name, *cells) for name, cells in by_placement.items()])


def _count(number: int | None, most: int) -> str:
    return "–" if number is None else f"{number} of {most}"


def _table(heads: Row, rows: Sequence[Row]) -> str:
    aligned = ("left", *["right"] * (len(heads) - 1))
    return tabulate(rows, headers=heads, colalign=aligned, disable_numparse=True)
