"""Which device is the fast tier of this search."""

from dataclasses import dataclass

from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import DeviceKind, GgmlDevice, Machine

NO_DEVICE = "none"
_MIB = 1 << 20


@dataclass(frozen=True)
class FastTier:
    """The device that holds hot experts. on_host: the CPU playing its own fast tier, for tests of exactness."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    emulated: bool
    on_host: bool

    @property
    def reserve_bytes(self) -> int:
        """What is never planned for: a driver's context and growth on real devices, where an overflow halves speed."""
        if self.emulated or self.on_host:
            return self.total_bytes // 100
        return max(384 * _MIB, self.total_bytes // 25)

    @property
    def limit_bytes(self) -> int:
        """What a configuration may use now."""
        return max(0, min(self.free_bytes, self.total_bytes) - self.reserve_bytes)

    @property
    def static_limit_bytes(self) -> int:
        """What a configuration may use on an idle device: the same tomorrow, so that a search can resume."""
        return max(0, self.total_bytes - self.reserve_bytes)


def choose_tier(machine: Machine, wanted: str | None) -> FastTier | None:
    """The device named, else the real one with most memory, else an emulated one; None for plain CPU."""
    if wanted is not None and wanted.lower() == NO_DEVICE:
        return None
    if wanted is None:
        linked = [device for device in machine.devices if device.has_link and device.memory_total_bytes]
        best = max(linked, key=lambda d: (not d.emulated, d.memory_total_bytes), default=None)
        return None if best is None else _tier(best, machine)
    usable = [d for d in machine.devices if d.has_link or d.kind is DeviceKind.CPU]
    for device in usable:
        if device.name.lower() == wanted.lower():
            return _tier(device, machine)
    names = ", ".join([*(device.name for device in usable), NO_DEVICE])
    raise MoetuneError(f"There is no device {wanted!r} on this machine.", f"Use one of: {names}.", ExitCode.DEVICE)


def _tier(device: GgmlDevice, machine: Machine) -> FastTier:
    on_host = device.kind is DeviceKind.CPU
    return FastTier(
        name=device.name,
        description=device.description,
        total_bytes=machine.memory.total_bytes if on_host else device.memory_total_bytes,
        free_bytes=machine.memory.available_bytes if on_host else device.memory_free_bytes,
        emulated=device.emulated,
        on_host=on_host,
    )
