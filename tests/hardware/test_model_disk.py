"""The disk under the model."""

import os
from pathlib import Path

import pytest

from moetune.hardware.disk import measure_disk, read_disk
from moetune.hardware.machine import ReadMethod, reason_for


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(1 << 20) * 20 + b"odd")
    return path


def test_disk_of_a_file_is_the_mount_that_holds_it(model: Path) -> None:
    """The longest mount point above the file, with what the kernel says of it."""
    disk = read_disk(model)
    assert model.resolve().is_relative_to(disk.mount_point)
    assert Path(disk.mount_point).stat().st_dev == model.stat().st_dev
    assert disk.fs_type
    assert disk.free_bytes == pytest.approx(os.statvfs(model).f_bavail * os.statvfs(model).f_frsize, rel=0.2)


def test_link_to_a_model_is_followed_to_its_disk(tmp_path: Path) -> None:
    """Model collections are full of links into other file systems."""
    (tmp_path / "link.gguf").symlink_to("/proc/version")
    assert read_disk(tmp_path / "link.gguf").mount_point == "/proc"


def test_missing_file_is_placed_on_the_disk_it_would_lie_on(tmp_path: Path) -> None:
    """And it cannot be timed, for the reason the system gives."""
    path = tmp_path / "not" / "there.gguf"
    disk = measure_disk(read_disk(path), path)
    assert disk.mount_point == read_disk(tmp_path).mount_point
    assert disk.read is None
    assert reason_for(disk.missing, "read") == "No such file or directory"


def test_sequential_read_has_a_rate_and_its_method(model: Path) -> None:
    """Within a spread, and never from fewer bytes than a sector."""
    disk = measure_disk(read_disk(model), model)
    assert disk.read is not None
    assert disk.read_method in tuple(ReadMethod)
    assert 0 < disk.read.gbps_min <= disk.read.gbps <= disk.read.gbps_max
    assert disk.read.bytes_per_pass % 4096 == 0
    assert disk.read.passes * disk.read.bytes_per_pass <= model.stat().st_size
    assert disk.missing == ()


def test_file_system_without_direct_reads_is_read_through_the_cache(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label tells the two apart, because they are not to be compared."""
    real_open = os.open

    def refuse_direct(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", refuse_direct)
    disk = measure_disk(read_disk(model), model)
    assert disk.read_method is ReadMethod.BUFFERED
    assert disk.read is not None


@pytest.mark.parametrize("size", [0, 4095])
def test_file_too_small_to_time_says_so(tmp_path: Path, size: int) -> None:
    """A rate from less than a sector would be noise."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"x" * size)
    disk = measure_disk(read_disk(path), path)
    assert disk.read is None
    assert reason_for(disk.missing, "read") == "the file is smaller than 4096 B"
