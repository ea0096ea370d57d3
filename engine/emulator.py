"""The emulated accelerator: which machines it can be, and what its library reads to become one.

The library (engine/native/emulator) computes with the CPU and holds results back until the emulated machine would have
had them. A preset states a real machine's figures; one ``scale`` brings its three bandwidths down together, so their
ratios, which decide whether a hot-expert cache wins, stay those of the real machine.

The default scale is 1/400. One core really computes MUL_MAT_ID on Q4_0 experts at 5 to 10 GB/s, and the fastest preset
then asks for 2.5 GB/s: the throttles decide the speed of decoding, with room for a second, busy core. It suits models
whose experts total about 5 to 200 MB, themselves a few hundredths to a thousandth of what such machines run; a machine
with faster cores can take more. ``vram_mib`` follows the same picture (a MiB for each GiB of the card) but is never
scaled, nor are the two latencies: an operation of a small model on a slow link takes about as long as the real thing.
What is bound by arithmetic and not by bandwidth, above all prompt processing, runs at this computer's own speed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from moetune.errors import ExitCode, MoetuneError

DEFAULT_SCALE = 0.0025


@dataclass(frozen=True)
class EmulatedMachine:
    """A real machine's figures and how far to scale them down. Bandwidths are in GB/s (1e9 bytes); 0 is unthrottled.

    ``devices`` is how many accelerators there are, each with memory and a link of its own.
    ``vram_mib``, ``launch_us`` (per operation), ``link_latency_us`` (per transfer) and ``threads`` (of the
    accelerator's arithmetic) are used as they stand. Raises ValueError, naming the field, for values out of range.
    """

    name: str
    vram_mib: int
    device_gbps: float
    host_gbps: float
    link_gbps: float
    launch_us: float = 5.0
    link_latency_us: float = 8.0
    threads: int = 1
    scale: float = DEFAULT_SCALE
    devices: int = 1

    def __post_init__(self) -> None:
        for field, (least, most) in _RANGES.items():
            value = getattr(self, field)
            if not (math.isfinite(value) and least <= value <= most):
                raise ValueError(f"{field} must lie between {least:g} and {most:g}, not {value:g}")

    def environment(self) -> dict[str, str]:
        """What the library reads when ggml loads it."""
        return {
            "EMU_VRAM_MIB": str(self.vram_mib),
            "EMU_DEVICE_GBPS": repr(self.device_gbps * self.scale),
            "EMU_HOST_GBPS": repr(self.host_gbps * self.scale),
            "EMU_LINK_GBPS": repr(self.link_gbps * self.scale),
            "EMU_LINK_LATENCY_US": repr(self.link_latency_us),
            "EMU_LAUNCH_US": repr(self.launch_us),
            "EMU_THREADS": str(self.threads),
            "EMU_DEVICES": str(self.devices),
        }

    def __str__(self) -> str:
        """The shortest text that ``parse_emulated`` turns back into this machine."""
        preset = PRESETS[self.name]
        changed = (key for key in PARAMETERS if getattr(self, key) != getattr(preset, key))
        return ",".join([self.name, *(f"{key}={getattr(self, key)!r}" for key in changed)])


_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "vram_mib": (1, 2**20),
        "device_gbps": (0, 1e5),
        "host_gbps": (0, 1e5),
        "link_gbps": (0, 1e5),
        "launch_us": (0, 1e6),
        "link_latency_us": (0, 1e6),
        "threads": (1, 512),
        "scale": (1e-6, 1),
        "devices": (1, 16),
    }
)

PRESETS: Mapping[str, EmulatedMachine] = MappingProxyType(
    {
        machine.name: machine
        for machine in (
            # A fast card on a desktop board: two memory channels, PCIe 4.0 x16.
            EmulatedMachine("desktop", vram_mib=24, device_gbps=1008, host_gbps=60, link_gbps=25),
            # A modest card in an older or laptop board.
            EmulatedMachine("small-card", vram_mib=12, device_gbps=360, host_gbps=45, link_gbps=12),
            # Eight memory channels beside an old card with slow launches: here a hot-expert cache should not win.
            EmulatedMachine("server", vram_mib=24, device_gbps=360, host_gbps=300, link_gbps=12, launch_us=40),
        )
    }
)

_WHOLE = ("vram_mib", "threads", "devices")
PARAMETERS = tuple(field.name for field in fields(EmulatedMachine) if field.name != "name")


def parse_emulated(text: str) -> EmulatedMachine:
    """``desktop`` or ``desktop,vram_mib=48,scale=0.01``: a preset, then the figures that differ, in the real machine's
    units. Raises MoetuneError(USAGE).
    """
    name, *assignments = (part.strip() for part in text.split(","))
    if name not in PRESETS:
        raise _unusable(text, f"there is no emulated machine {name!r}")
    changes: dict[str, float] = {}
    for assignment in assignments:
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals or key not in PARAMETERS:
            raise _unusable(text, f"{assignment!r} sets no parameter of an emulated machine")
        if key in changes:
            raise _unusable(text, f"{key} is set twice")
        try:
            changes[key] = int(value) if key in _WHOLE else float(value)
        except ValueError as error:
            kind = "a whole number" if key in _WHOLE else "a number"
            raise _unusable(text, f"{key}={value} is not {kind}") from error
    try:
        return replace(PRESETS[name], **changes)  # type: ignore[arg-type]  # ints stay ints above
    except ValueError as error:
        raise _unusable(text, str(error)) from error


def library_path() -> Path:
    """The emulator as a file, for ``ggml_backend_load`` and GGML_BACKEND_PATH."""
    return Path(str(files("moetune.engine") / "libemu_accel.so"))


def _unusable(text: str, cause: str) -> MoetuneError:
    return MoetuneError(
        f"Cannot emulate {text!r}: {cause}",
        f"Name a machine ({', '.join(PRESETS)}), then what differs, such as 'desktop,vram_mib=48'; "
        f"parameters: {', '.join(PARAMETERS)}.",
        ExitCode.USAGE,
    )
