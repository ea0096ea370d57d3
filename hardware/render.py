"""The machine for people: 80 columns, a unit with every figure, a reason for every gap."""

import textwrap
from collections.abc import Iterable, Iterator

from tabulate import tabulate

from moetune.hardware.machine import Bandwidth, Compute, Disk, GgmlDevice, Link, Machine, Missing, NvidiaGpu, reason_for

WIDTH = 80
GAP = "–"
_INDENT = "  "
_LABEL_WIDTH = 21
_RATE_WIDTH = 22
_EMULATED = "emulated"

Row = tuple[str, str]


def machine_table(machine: Machine) -> str:
    """A section for each part of the machine and for what its devices compute. UUIDs are left to JSON and YAML."""
    sections = [
        ("Machine", _facts(_machine_rows(machine))),
        ("CPU", _facts(_cpu_rows(machine))),
        ("Memory", _facts(_memory_rows(machine))),
        ("ggml devices", _device_table(machine.devices)),
        ("NVIDIA GPUs", "\n".join(_facts(_gpu_rows(gpu)) for gpu in machine.gpus) or _no_section(machine, "gpus")),
        ("Links", "\n".join(map(_link_table, machine.links)) or _no_section(machine, "links")),
        *([("Compute", _compute_table(machine.compute))] if machine.compute else []),
        ("Disk", _facts(_disk_rows(machine.disk)) if machine.disk else _no_section(machine, "disk")),
    ]
    return "\n\n".join(f"{title}\n{body}" for title, body in sections)


def _no_section(machine: Machine, field: str) -> str:
    return textwrap.fill(_gap(machine.missing, field), WIDTH)


def _machine_rows(machine: Machine) -> Iterator[Row]:
    software = machine.software
    yield "label", machine.label
    yield "fingerprint", machine.fingerprint
    yield "system", f"{software.os}, kernel {software.kernel}"
    yield (
        "llama-cpp-python",
        f"{software.llama_cpp_python_version}, ggml {software.ggml_version} {software.ggml_commit}",
    )
    yield "measured", machine.measured_at or GAP


def _cpu_rows(machine: Machine) -> Iterator[Row]:
    cpu = machine.cpu
    cache = cpu.last_level_cache_bytes
    yield "model", f"{cpu.model} ({cpu.arch})"
    yield "cores", f"{cpu.physical_cores} physical, {cpu.logical_cores} logical, {cpu.usable_cores} usable"
    yield "last-level cache", size_text(cache) if cache else f"{GAP} (the kernel does not say)"
    yield "instruction sets", " ".join(cpu.instruction_sets) or f"{GAP} (none that ggml has kernels for)"


def _memory_rows(machine: Machine) -> Iterator[Row]:
    memory = machine.memory
    yield "RAM", f"{size_text(memory.total_bytes)}, {size_text(memory.available_bytes)} available"
    yield "swap", f"{size_text(memory.swap_total_bytes)}, {size_text(memory.swap_free_bytes)} free"
    yield "read, 1 thread", _rate(memory.read_1_thread, memory.missing, "read_1_thread")
    threads = f"{memory.threads} thread{'s' if memory.threads != 1 else ''}"
    yield f"read, {threads}", _rate(memory.read_all_threads, memory.missing, "read_all_threads")


def _device_table(devices: tuple[GgmlDevice, ...]) -> str:
    rows = [
        (
            device.name,
            device.description,
            f"{device.kind}, {_EMULATED}" if device.emulated else str(device.kind),
            size_text(device.memory_total_bytes) if device.memory_total_bytes else "uses RAM",
            size_text(device.memory_free_bytes) if device.memory_total_bytes else "",
        )
        for device in devices
    ]
    return _table(rows, ("name", "description", "kind", "memory", "free"), (12, 23, 15, 9, 9))


def _gpu_rows(gpu: NvidiaGpu) -> Iterator[Row]:
    def shown(field: str, text: str) -> str:
        return text if getattr(gpu, field) is not None else _gap(gpu.missing, field)

    yield f"GPU {gpu.index}", shown("name", str(gpu.name))
    yield "driver", shown("driver_version", str(gpu.driver_version))
    free = shown("vram_free_bytes", f"{size_text(gpu.vram_free_bytes or 0)} free")
    yield "VRAM", shown("vram_total_bytes", f"{size_text(gpu.vram_total_bytes or 0)}, {free}")
    for when, generation, width in (
        ("now", "pcie_gen_now", "pcie_width_now"),
        ("most", "pcie_gen_max", "pcie_width_max"),
    ):
        lanes = shown(width, f"{getattr(gpu, width)} lanes")
        yield f"PCIe, {when}", shown(generation, f"generation {getattr(gpu, generation)}, {lanes}")
    yield "compute capability", shown("compute_capability", str(gpu.compute_capability))
    yield "power limit", shown("power_limit_w", f"{gpu.power_limit_w or 0:.0f} W")


def _link_table(link: Link) -> str:
    mark = _EMULATED if link.emulated else ""
    title = f"{link.device}, {mark}" if mark else link.device
    sizes = [transfers for transfers in (link.bulk, link.expert) if transfers]
    rows = [
        (label, *(_cell(getattr(transfers, field)) for transfers in sizes), mark)
        for label, field in (
            ("to device, pinned", "h2d_pinned"),
            ("to device, pageable", "h2d_pageable"),
            ("from device, pinned", "d2h_pinned"),
            ("from device, pageable", "d2h_pageable"),
        )
        if sizes
    ]
    rows.append(("device memory, read", _cell(link.device_memory), *[""] * (len(sizes) - 1), mark))
    heads = (title, *(f"{size_text(transfers.size_bytes)} a transfer" for transfers in sizes), "")
    widths = (_LABEL_WIDTH, *[_RATE_WIDTH] * max(1, len(sizes)), len(_EMULATED))
    return "\n".join([_table(rows, heads if sizes else (title, "", ""), widths), *_gap_lines(link.missing)])


def _gap_lines(missing: Iterable[Missing]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for gap in missing:
        reasons.setdefault(gap.reason, []).append(gap.field.replace("_", " "))
    for reason, fields in reasons.items():
        yield textwrap.fill(f"{GAP} {', '.join(fields)}: {reason}", WIDTH, subsequent_indent="  ")


def _compute_table(compute: tuple[Compute, ...]) -> str:
    rows = [
        (
            each.device,
            _cell(each.experts),
            f"{_figure(each.batch_gflops)} Gop/s" if each.batch_gflops else GAP,
            _microseconds(each.node_s),
            _microseconds(each.join_s),
            _EMULATED if each.emulated else "",
        )
        for each in compute
    ]
    heads = ("device", "experts, a token", "a batch", "one op", "hand-over", "")
    return _table(rows, heads, (9, 22, 11, 9, 11, len(_EMULATED)))


def _microseconds(seconds: float | None) -> str:
    return f"{_figure(seconds * 1e6)} us" if seconds else GAP


def _disk_rows(disk: Disk) -> Iterator[Row]:
    yield "mount point", disk.mount_point
    yield "file system", f"{disk.fs_type} on {disk.device}"
    yield "free", size_text(disk.free_bytes)
    how = f", {disk.read_method} reads" if disk.read_method else ""
    yield "sequential read", _rate(disk.read, disk.missing, "read") + how


def size_text(size_bytes: int) -> str:
    """In the largest binary unit that leaves at least one whole, from B to TiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _cell(rate: Bandwidth | None) -> str:
    return f"{_figure(rate.gbps)} GB/s ({_rough(rate.gbps_min)}–{_rough(rate.gbps_max)})" if rate else GAP


def _rate(rate: Bandwidth | None, missing: Iterable[Missing], field: str) -> str:
    return _cell(rate) if rate else _gap(missing, field)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _rough(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _gap(missing: Iterable[Missing], field: str) -> str:
    reason = reason_for(missing, field)
    return f"{GAP} ({reason})" if reason else GAP


def _facts(rows: Iterable[Row]) -> str:
    return _table(rows, (), (_LABEL_WIDTH, WIDTH - _LABEL_WIDTH - 2 * len(_INDENT)))


def _table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...], widths: tuple[int, ...]) -> str:
    # Numbers stay as they were written: 0.10 is not 0.1 when it is a version or a compute capability.
    return tabulate(
        rows,
        headers=heads,
        tablefmt="plain",
        maxcolwidths=list(widths),
        # tabulate makes a column two wider than its heading.
        maxheadercolwidths=[width - 2 for width in widths],
        disable_numparse=True,
    )
