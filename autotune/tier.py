"""Which devices are the fast tiers of this search."""

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
        return self.limit_under(None)

    def limit_under(self, reserve_bytes: int | None) -> int:
        """What a configuration may use now that keeps its own reserve; None is the usual one."""
        reserve = self.reserve_bytes if reserve_bytes is None else reserve_bytes
        return max(0, min(self.free_bytes, self.total_bytes) - reserve)

    @property
    def static_limit_bytes(self) -> int:
        """What a configuration may use on an idle device: the same tomorrow, so that a search can resume."""
        return max(0, self.total_bytes - self.reserve_bytes)


def choose_tiers(machine: Machine, wanted: str | None) -> tuple[FastTier, ...]:
    """The devices to use, the first of them the one for hot experts unless the search finds another better.

    wanted: names separated by commas; "none" is plain CPU; None takes all real GPUs, else all emulated ones, with most
    memory first. A GPU that two backends know is taken once, and one that shares RAM only where there is no other, as
    llama.cpp does.
    """
    if wanted is not None and wanted.lower() == NO_DEVICE:
        return ()
    chosen = _best(machine) if wanted is None else [_named(machine, name.strip()) for name in wanted.split(",")]
    tiers = tuple(_tier(device, machine) for device in dict.fromkeys(chosen))
    if len(tiers) > 1 and any(tier.on_host for tier in tiers):
        raise MoetuneError(
            "The CPU cannot be one of several devices.", "Name GPUs only, or the CPU alone.", ExitCode.USAGE
        )
    return tiers


def _best(machine: Machine) -> list[GgmlDevice]:
    linked = [device for device in machine.devices if device.has_link and device.memory_total_bytes]
    real = [device for device in linked if not device.emulated]
    own_memory = [device for device in real or linked if device.kind is DeviceKind.GPU]
    usable = own_memory or (real or linked)[:1]
    once: dict[str, GgmlDevice] = {}
    for device in usable:
        once.setdefault(device.device_id or device.name, device)
    return sorted(once.values(), key=lambda device: -device.memory_total_bytes)


def _named(machine: Machine, wanted: str) -> GgmlDevice:
    usable = [d for d in machine.devices if d.has_link or d.kind is DeviceKind.CPU]
    for device in usable:
        if device.name.lower() == wanted.lower():
            return device
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
