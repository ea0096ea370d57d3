"""The file system that holds the model, and how fast the model's bytes come off it."""

import contextlib
import mmap
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from moetune.hardware.machine import NOT_MEASURED, Disk, Missing, ReadMethod
from moetune.hardware.timing import bandwidth_from, stopwatch

MIB = 1 << 20
_CHUNK_BYTES = 8 * MIB
_PASS_BYTES = 32 * MIB
_MOST_BYTES = 256 * MIB
# O_DIRECT wants offsets and lengths in whole sectors; 4 KiB suits every common disk.
_SECTOR_BYTES = 4096


class _Mount(NamedTuple):
    mount_point: str
    fs_type: str
    device: str


def read_disk(path: Path) -> Disk:
    """The disk under ``path`` (or, where that does not exist, under its nearest existing parent), unmeasured."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    mount = _mount_of(place)
    return Disk(
        mount_point=mount.mount_point,
        fs_type=mount.fs_type,
        device=mount.device,
        free_bytes=psutil.disk_usage(str(place)).free,
        read=None,
        read_method=None,
        missing=(Missing("read", NOT_MEASURED),),
    )


def measure_disk(disk: Disk, path: Path, budget_s: float = 1.0) -> Disk:
    """Reads at most 256 MiB of ``path`` in order: past the page cache if the file system allows it, else through it."""
    reason = ""
    for method in _methods():
        try:
            seconds, bytes_per_pass = _read(path, method, budget_s)
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        if not seconds:
            reason = f"the file is smaller than {_SECTOR_BYTES} B"
            break
        return replace(disk, read=bandwidth_from(seconds, bytes_per_pass), read_method=method, missing=())
    return replace(disk, missing=(Missing("read", reason),))


def _methods() -> tuple[ReadMethod, ...]:
    return (ReadMethod.DIRECT, ReadMethod.BUFFERED) if hasattr(os, "O_DIRECT") else (ReadMethod.BUFFERED,)


def _read(path: Path, method: ReadMethod, budget_s: float) -> tuple[list[float], int]:
    flags = os.O_RDONLY | (os.O_DIRECT if method is ReadMethod.DIRECT else 0)
    descriptor = os.open(path, flags)
    try:
        usable = os.fstat(descriptor).st_size // _SECTOR_BYTES * _SECTOR_BYTES
        # A small file is read in eight passes, so that it too shows its spread.
        bytes_per_pass = min(_PASS_BYTES, max(usable // 8 // _SECTOR_BYTES, 1) * _SECTOR_BYTES, usable)
        if bytes_per_pass == 0:
            return [], 0
        offsets = range(0, min(usable, _MOST_BYTES) - bytes_per_pass + 1, bytes_per_pass)
        if method is ReadMethod.BUFFERED and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, min(usable, _MOST_BYTES), os.POSIX_FADV_DONTNEED)
        seconds: list[float] = []
        # An anonymous map starts on a page boundary, which O_DIRECT requires of its destination.
        with contextlib.closing(mmap.mmap(-1, _CHUNK_BYTES)) as chunk, memoryview(chunk) as view:
            for offset in offsets:
                seconds.append(stopwatch(partial(_read_pass, descriptor, view, offset, bytes_per_pass))())
                if sum(seconds) >= budget_s:
                    break
        return seconds, bytes_per_pass
    finally:
        os.close(descriptor)


def _read_pass(descriptor: int, view: memoryview, offset: int, size: int) -> None:
    end = offset + size
    while offset < end:
        got = os.preadv(descriptor, [view[: min(len(view), end - offset)]], offset)
        if got == 0:
            raise OSError(0, "the file became shorter while it was read")
        offset += got


def _mount_of(place: Path) -> _Mount:
    mounts = [_Mount(p.mountpoint, p.fstype, p.device) for p in psutil.disk_partitions(all=True)]
    holding = [mount for mount in mounts if place.is_relative_to(mount.mount_point)]
    # The last of several mounts on one point hides the others.
    return max(reversed(holding), key=lambda mount: len(mount.mount_point), default=_Mount("/", "unknown", "unknown"))
