"""Every device in llama.cpp's registry."""

import ctypes

from moetune.hardware.ggml import DeviceProps
from moetune.hardware.machine import DeviceKind, GgmlDevice

_KINDS = tuple(DeviceKind)


def read_devices(library: ctypes.CDLL) -> tuple[GgmlDevice, ...]:
    """In registry order, so that the position is the index for ``device_handle``."""
    return tuple(_read_device(library, device_handle(library, i)) for i in range(library.ggml_backend_dev_count()))


def device_handle(library: ctypes.CDLL, index: int) -> int:
    """ggml's pointer to the device at ``index``."""
    handle: int = library.ggml_backend_dev_get(index)
    return handle


def _read_device(library: ctypes.CDLL, handle: int) -> GgmlDevice:
    props = DeviceProps()
    library.ggml_backend_dev_get_props(handle, ctypes.byref(props))
    return GgmlDevice(
        name=_text(props.name),
        description=_text(props.description),
        kind=_KINDS[props.type],
        memory_total_bytes=props.memory_total,
        memory_free_bytes=props.memory_free,
        device_id=_text(props.device_id) or None,
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
