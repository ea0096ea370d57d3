"""A plan for people: 80 columns, a unit with every figure."""

import textwrap
from collections.abc import Iterator

from tabulate import tabulate

from moetune.autotune.cost import Prediction
from moetune.autotune.plan import OFFLOAD, Plan, Planned
from moetune.autotune.words import describe, number
from moetune.engine.config import KvType

WIDTH = 80
_NAME_WIDTH = 25
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plan_table(plan: Plan) -> str:
    """Where the model would lie, the best few configurations beside the usual ones, why, and what would change it."""
    return "\n\n".join([_head(plan), _memory(plan), _configurations(plan), *_reasons(plan), _rests_on(plan)])


def _head(plan: Plan) -> str:
    shape, tiers = plan.cost.shape, plan.space.tiers
    where = " and ".join(f"{tier.name} ({tier.description})" for tier in tiers) or "the CPU alone"
    turn = f"{shape.prompt_tokens:,} tokens in and {shape.reply_tokens:,} out after {shape.depth_tokens:,}"
    lines = [
        f"{plan.space.model.name} on {where}: predicted, nothing was run.",
        f"A turn is {turn}, in a context of {plan.n_ctx:,}.",
    ]
    if plan.space.cache_idle:
        lines.append(f"The expert cache takes no part: {plan.space.cache_idle}.")
    return "\n".join(_wrapped(line) for line in lines)


def _memory(plan: Plan) -> str:
    memory = plan.cost.memory
    devices = [tier.name for tier in memory.tiers] or ["fast tier"]
    rows = [
        (share.what, *(size(share.fast_bytes.get(name, 0)) for name in devices), size(share.host_bytes))
        for share in plan.shares
    ]
    limits = [tier.limit_bytes for tier in memory.tiers] or [0]
    rows.append(("most that may be used", *map(size, limits), size(memory.host_limit_bytes)))
    title = "memory of the best" if plan.best else "memory of the first"
    table = tabulate(
        rows,
        headers=(title, *devices, "RAM"),
        colalign=("left", *("right" for _ in devices), "right"),
        disable_numparse=True,
    )
    kinds = ", ".join(f"{kind} {size(taken)}" for kind, taken in plan.kv_bytes.items() if kind is not KvType.F32)
    return f"{table}\n{_wrapped(f'KV cache of {plan.n_ctx:,} tokens, state included: {kinds}')}"


def _configurations(plan: Plan) -> str:
    rows = [_row(f"best {at}", planned) for at, planned in enumerate(plan.best, 1)]
    rows += [_row(planned.name, planned) for planned in plan.usual]
    headers = ("configuration", "pp tok/s", "tg tok/s", "turn s", "hits", "fast tier")
    table = tabulate(rows, headers=headers, colalign=("left", *("right",) * 5), disable_numparse=True)
    layers = plan.space.model.n_layers
    lines = [f"best {at}: {describe(planned.config, layers)}" for at, planned in enumerate(plan.best, 1)]
    lines += [
        f"{planned.name}: {describe(planned.config, layers)}" for planned in plan.usual if planned.name == OFFLOAD
    ]
    lines += [_misfit(planned) for planned in plan.usual if not planned.prediction.fits]
    if not plan.best:
        lines.append("No configuration fits; use more memory, a smaller quantisation or a shorter context (--ctx).")
    return "\n".join([table, *(_wrapped(line) for line in lines)])


def _row(name: str, planned: Planned) -> tuple[str, ...]:
    seen = planned.prediction
    hits = "" if seen.hit_rate is None else f"{seen.hit_rate:.0%}"
    if not seen.fits:
        return name[:_NAME_WIDTH], "does not", "fit", "", hits, size(seen.fast_bytes)
    speeds = (number(seen.pp_tps), number(seen.tg_tps), number(seen.turn_s))
    return name[:_NAME_WIDTH], *speeds, hits, size(seen.fast_bytes)


def _misfit(planned: Planned) -> str:
    places = (("the fast tier", planned.fast_excess_bytes), ("RAM", planned.host_excess_bytes))
    too_many = " and ".join(f"{size(excess)} too many for {where}" for where, excess in places if excess > 0)
    return f"{planned.name}: {too_many}."


def _reasons(plan: Plan) -> Iterator[str]:
    if not plan.best:
        return
    first = plan.best[0].prediction
    yield _wrapped(f"{first.reason}.")
    yield "\n".join(_wrapped(line) for line in _changes(first))


def _changes(seen: Prediction) -> Iterator[str]:
    if not seen.remedies:
        yield "Twice as much of any one thing would change next to nothing."
        return
    yield f"What would change it, from {number(seen.turn_s)} s a turn:"
    for remedy in seen.remedies:
        what = "half the fixed costs" if remedy.resource.name == "FIXED" else f"twice the {remedy.resource}"
        yield f"  {what}: {number(remedy.turn_s)} s, {remedy.saved:.0%} less"


def _rests_on(plan: Plan) -> str:
    lines = [f"Hit rates rest on: {plan.cost.hits.source}."] if plan.space.has_cache else []
    if plan.space.tier and len(plan.space.tiers) > 1:
        lines.append(f"All devices are taken to be as fast as {plan.space.tier.name}.")
    if plan.cost.figures.assumed:
        lines.append("Assumed, because not measured:")
        lines += [f"- {assumption}" for assumption in plan.cost.figures.assumed]
    if plan.space.tier and plan.space.tier.emulated:
        lines.append("(Emulated: these would be the speeds of an emulated device.)")
    return "\n".join(_wrapped(line) for line in lines) or "All figures of the machine were measured."


def _wrapped(text: str) -> str:
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(text, WIDTH, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def size(n_bytes: float) -> str:
    """In the largest binary unit that leaves at least one whole."""
    for unit in _UNITS[:-1]:
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} {_UNITS[-1]}"
