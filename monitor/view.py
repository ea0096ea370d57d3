"""One frame of the monitor, for a terminal of 80 columns and more."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moetune.engine.activity import Activity, KvRow, LayerActivity
from moetune.monitor.history import History, Rates

WIDTH = 80
_SHADES = " ·░▒▓█"
_BARS = " ▁▂▃▄▅▆▇█"
# The shade tells how often, the colour where: an underline would not be seen below a full block.
_IN_SLOT, _ELSEWHERE = "green", "yellow"
_LABEL = 12
_MOST_ROWS = 32


def frame(history: History, width: int = WIDTH, height: int | None = None) -> Group:
    """Everything there is to see now. height: lines of the terminal, None for as many as it takes."""
    now, width = history.now, max(WIDTH, width)
    mark = "  (emulated)" if now.emulated else ""
    head = Text.assemble((printable(now.model)[: width - len(mark)], "bold"), mark)
    parts: list[RenderableType] = [head, _flow(history, width), Text(), _memory(now, width), Text()]
    used = 1 + 4 + 1 + 2 + (len(now.kv) > 1) + len(now.devices) + 1
    if now.layers:
        # Three lines around the heat map, and one that the terminal itself wants.
        room = _MOST_ROWS if height is None else max(1, height - used - 4)
        parts += [_heat_map(now, history.layer_hit_rates(), width, min(room, _MOST_ROWS))]
    else:
        parts += [Text("No expert slots: this engine runs without a cache, so nobody counts which experts are used.")]
    return Group(*parts)


def _flow(history: History, width: int) -> Table:
    rates, line = history.rates, list(history.line)[-(width - 46) :]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL)
    table.add_column(width=14, justify="right")
    table.add_column(width=width - 30, no_wrap=True)
    table.add_row("prompt", f"{rates.prompt_tps:,.1f} tok/s", _trend([r.prompt_tps for r in line]))
    table.add_row("reply", f"{rates.reply_tps:,.1f} tok/s", _trend([r.reply_tps for r in line]))
    table.add_row("hit rate", _share(rates.hit_rate), _trend([r.hit_rate or 0.0 for r in line], top=1.0))
    table.add_row("promotions", f"{rates.promotions_s:,.1f} /s", _link(rates, line))
    return table


def _link(rates: Rates, line: Sequence[Rates]) -> Text:
    moved = f"{size(rates.link_bytes_s)}/s over the link "
    return Text.assemble(moved, _trend([r.link_bytes_s for r in line[-20:]]))


def _memory(now: Activity, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL)
    table.add_column(width=30)
    table.add_column(width=width - 46, no_wrap=True)
    cells, room = sum(row.cells for row in now.kv), sum(row.room for row in now.kv)
    table.add_row("KV cache", f"{cells:,} of {room:,} positions", _bar(cells, room, width))
    if len(now.kv) > 1:
        table.add_row("sequences", _sequences(now.kv), _fills(now.kv, width - 46))
    for device in now.devices:
        name = printable(device.name)[:_LABEL]
        held = f"{size(device.used_bytes)} of {size(device.total_bytes)}" if device.total_bytes else "does not say"
        table.add_row(name, held, _bar(device.used_bytes, device.total_bytes, width))
    table.add_row("engine", f"{size(now.rss_bytes)} of RAM", "")
    return table


def _sequences(rows: Sequence[KvRow]) -> str:
    running = sum(row.running for row in rows)
    kept = sum(bool(row.cells) and not row.running for row in rows)
    return f"{running} running, {kept} kept, {len(rows) - running - kept} free"


def _fills(rows: Sequence[KvRow], columns: int) -> Text:
    """How full each sequence's part of the KV cache is; the fullest of several where there is no room for all."""
    a_cell = -(-len(rows) // columns)
    shown = Text()
    for at in range(0, len(rows), a_cell):
        fullest = max(rows[at : at + a_cell], key=lambda row: row.cells)
        shown.append(_BARS[_level(fullest.cells, fullest.room, len(_BARS))], "green" if fullest.running else "dim")
    return shown


def _heat_map(now: Activity, hit_rates: dict[int, float | None], width: int, rows: int) -> Group:
    """Layers down, experts across; several to a cell where there is no room for all."""
    n_experts = max(len(layer.heat) for layer in now.layers)
    columns = max(1, min(n_experts, width - 26))
    # Two characters are about a square, and easier to tell apart.
    wide = 2 if 2 * n_experts <= width - 26 else 1
    shown = list(_grouped(now.layers, rows))
    a_cell = -(-n_experts // columns)
    what = "experts" if a_cell == 1 else f"{a_cell} experts a cell"
    scale = f"{_SHADES[1]} rare to {_SHADES[-1]} often"
    lines = [Text(f"{'layer':<8}{'hits':>5} {'slots':>5}  {what}, {n_experts} a layer; {scale}")]
    for group in shown:
        first, last = group[0], group[-1]
        name = f"{first.layer}" if first is last else f"{first.layer}–{last.layer}"
        known = [rate for layer in group if (rate := hit_rates.get(layer.layer)) is not None]
        line = Text(f"{name:<8}{_share(sum(known) / len(known) if known else None):>5} {first.n_slots:>5}  ")
        line.append_text(_cells(group, columns, wide))
        if not all(layer.pays for layer in group):
            line.append(" off", style="yellow")
        lines.append(line)
    residents = sum(len(layer.residents) for layer in now.layers)
    total = sum(len(layer.heat) for layer in now.layers)
    held = f"in slots now: {residents:,} of {total:,} experts, "
    lines.append(Text.assemble(held, ("green", _IN_SLOT), "; those elsewhere are ", ("yellow", _ELSEWHERE)))
    return Group(*lines)


def _grouped(layers: Sequence[LayerActivity], rows: int) -> list[list[LayerActivity]]:
    a_row = max(1, -(-len(layers) // max(1, rows)))
    return [list(layers[at : at + a_row]) for at in range(0, len(layers), a_row)]


def _cells(group: list[LayerActivity], columns: int, wide: int) -> Text:
    n = max(len(layer.heat) for layer in group)
    a_cell = -(-n // columns) if n else 1
    hottest = max((value for layer in group for value in layer.heat), default=0.0)
    cells = Text()
    for start in range(0, n, a_cell):
        heat = max((max(layer.heat[start : start + a_cell], default=0.0) for layer in group), default=0.0)
        level = _level(heat, hottest, len(_SHADES))
        held = any(start <= expert < start + a_cell for layer in group for expert in layer.residents)
        cells.append(_SHADES[level] * wide, style=_IN_SLOT if held else _ELSEWHERE)
    return cells


def _level(value: float, top: float, n: int) -> int:
    """0 for nothing, else 1 to n - 1."""
    if value <= 1e-3 or top <= 0:
        return 0
    return min(n - 1, 1 + int((n - 1) * value / top))


def _trend(values: Sequence[float], top: float | None = None) -> Text:
    highest = top if top is not None else max(values, default=0.0)
    return Text("".join(_BARS[_level(value, highest, len(_BARS))] for value in values), style="cyan")


def _bar(used: int, total: int, width: int) -> Text:
    length = min(48, width - 56)
    filled = min(length, round(length * used / total)) if total else 0
    return Text("█" * filled + "░" * (length - filled), style="red" if total and used > 0.95 * total else "green")


def _share(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.0%}"


def size(n_bytes: float) -> str:
    """In the largest binary unit that leaves at least one whole."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def printable(text: str) -> str:
    """Names come from files and sockets: what is not for the eye is replaced."""
    return "".join(c if c.isprintable() else "�" for c in text)
