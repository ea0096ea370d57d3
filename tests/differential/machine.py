"""The emulated machine this process has registered: its faults, throttles and counters."""

import ctypes

from moetune.engine.emulator import library_path

# The members of emu_counter_values in engine/native/emulator/emulator.h, in order.
COUNTERS = (
    *("h2d_bytes", "d2h_bytes", "h2d_transfers", "d2h_transfers", "graphs", "launches", "device_bytes"),
    *("host_expert_bytes", "vram_used_bytes", "vram_peak_bytes", "link_busy_ns", "device_busy_ns", "host_busy_ns"),
    *("device_late_ns", "host_late_ns", "held_ns", "queue_link_wait_ns", "caller_link_wait_ns"),
    *("refused_allocations", "failed_graphs"),
)


FAULTS = ("EMU_VRAM_STOLEN_MIB", "EMU_REFUSE_ALLOC_EVERY", "EMU_FAIL_GRAPH_EVERY", "EMU_LOST_AFTER_GRAPHS")


class _Counters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in COUNTERS]


class Machine:
    """The loaded emulator. `set` takes the name of an EMU_* variable."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(str(library_path()))

    def set(self, key: str, value: str | int | float) -> None:
        assert self._lib.emu_set(key.encode(), str(value).encode()) == 0, f"the emulator refuses {key}={value}"

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """Counters since an earlier reading; bytes of memory as they are."""
        now = self.counters()
        return {name: now[name] - (0 if name.startswith("vram_") else before[name]) for name in now}

    def repair(self) -> None:
        """No fault any more, unless the device is gone."""
        for variable in FAULTS:
            self.set(variable, 0)

    def counters(self) -> dict[str, int]:
        values = _Counters()
        assert self._lib.emu_counters(ctypes.byref(values), ctypes.c_size_t(ctypes.sizeof(values))) == 0
        return {name: getattr(values, name) for name in COUNTERS}
