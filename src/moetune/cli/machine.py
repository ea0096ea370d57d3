"""The machine a command works on: this one, with an emulated accelerator when asked for."""

from moetune.cli.folders import machines_folder
from moetune.cli.output import note, wrapped
from moetune.cli.progress import waiting
from moetune.engine.emulator import EmulatedMachine, parse_emulated
from moetune.engine.model import Model
from moetune.engine.native_log import silence
from moetune.engine.runner import register_emulated
from moetune.hardware.cache import load_or_probe
from moetune.hardware.links import EXPERT_BYTES
from moetune.hardware.machine import Machine
from moetune.hardware.probe import read_machine


def emulated_machine(spec: str | None) -> EmulatedMachine | None:
    """What `--emulate` describes; nothing is loaded yet."""
    return None if spec is None else parse_emulated(spec)


def seen_machine(model: Model | None, emulated: EmulatedMachine | None) -> Machine:
    """The machine without any timing: enough to know which one it is."""
    _add(emulated)
    return read_machine(model.path if model else None)


def measured_machine(model: Model | None, emulated: EmulatedMachine | None, *, fresh: bool = False) -> Machine:
    """The machine with its rates, remembered ones where they still hold and `fresh` does not forbid them."""
    _add(emulated)
    with waiting("looking at this machine; what is not remembered is measured"):
        found = load_or_probe(machines_folder(), model.path if model else None, _expert_bytes(model), remeasure=fresh)
    for warning in found.warnings:
        note(wrapped(f"warning: {warning.message}"))
    return found.machine


def fast_tier_name(machine: Machine, asked: str | None, emulated: EmulatedMachine | None) -> str | None:
    """The devices to use: those asked for, else the emulated ones if there are any, else None for the best ones."""
    if asked is not None or emulated is None:
        return asked
    return ",".join(device.name for device in machine.devices if device.emulated and device.has_link) or None


def _add(emulated: EmulatedMachine | None) -> None:
    silence()
    if emulated is not None:
        register_emulated(emulated)


def _expert_bytes(model: Model | None) -> int:
    """The size at which links are timed beside the bulk size: the model's own expert where there is one."""
    sizes = [layer.expert_bytes for layer in model.layers] if model else []
    return max(sizes, default=0) or EXPERT_BYTES
