"""Cores, caches, instruction sets, and the limits of control groups."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetune.hardware.cgroups import CgroupLimits, read_cgroup_limits
from moetune.hardware.cpu import instruction_sets, last_level_cache_bytes, read_cpu, usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def proc(tmp_path: Path, groups: str, mounts: str) -> Path:
    write(tmp_path / "proc/cgroup", groups)
    write(tmp_path / "proc/mountinfo", mounts)
    return tmp_path / "proc"


def test_tightest_limit_on_the_way_up_counts_in_version_2(tmp_path: Path) -> None:
    """A group is bound by its own limit and by those of all above it."""
    top = tmp_path / "fs"
    write(top / "job/cpu.max", "150000 100000\n")
    write(top / "job/memory.max", "1000000\n")
    write(top / "job/memory.current", "700000\n")
    write(top / "job/memory.stat", "anon 1\ninactive_file 200000\n")
    write(top / "job/inner/cpu.max", "400000 100000\n")
    write(top / "job/inner/most/cpu.max", "max 100000\n")
    write(top / "job/inner/memory.max", "max\n")
    write(top / "job/inner/memory.current", "5\n")
    limits = read_cgroup_limits(proc(tmp_path, "0::/job/inner/most\n", f"30 20 0:26 / {top} rw - cgroup2 cgroup2 rw\n"))
    assert limits == CgroupLimits(cores=1.5, memory_bytes=1_000_000, memory_used_bytes=500_000)


def test_version_1_hierarchies_are_read_apart(tmp_path: Path) -> None:
    """Processor and memory have trees, mounts and paths of their own there."""
    write(tmp_path / "cpu/a/cpu.cfs_quota_us", "400000\n")
    write(tmp_path / "cpu/a/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "mem/b/memory.limit_in_bytes", "2000000\n")
    write(tmp_path / "mem/b/memory.usage_in_bytes", "300000\n")
    mounts = (
        f"1 0 0:1 / {tmp_path}/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
        f"2 0 0:2 / {tmp_path}/mem rw - cgroup cgroup rw,memory\n"
        "3 0 0:3 / /home rw - ext4 /dev/sda rw\n"
    )
    limits = read_cgroup_limits(proc(tmp_path, "2:cpu,cpuacct:/a\n1:memory:/b\n", mounts))
    assert limits == CgroupLimits(cores=4.0, memory_bytes=2_000_000, memory_used_bytes=300_000)


def test_version_1_writes_no_limit_as_a_huge_number(tmp_path: Path) -> None:
    """Neither the page-aligned maximum nor a quota of -1 is a limit."""
    write(tmp_path / "cg/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cg/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "cg/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "cg/memory.usage_in_bytes", "1\n")
    mounts = f"1 0 0:1 / {tmp_path}/cg rw - cgroup cgroup rw,cpu,memory\n"
    assert read_cgroup_limits(proc(tmp_path, "1:cpu,memory:/\n", mounts)) == CgroupLimits(None, None, None)


def test_mount_that_shows_only_the_containers_part_is_followed(tmp_path: Path) -> None:
    """The path of the group begins above the root of the mount there."""
    write(tmp_path / "fs/cpu.max", "200000 100000\n")
    mounts = f"1 0 0:1 /docker/abc {tmp_path}/fs rw - cgroup2 cgroup2 rw\n"
    assert read_cgroup_limits(proc(tmp_path, "0::/docker/abc\n", mounts)).cores == 2.0


def test_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    """Nothing to read is no limit, and no error."""
    assert read_cgroup_limits(tmp_path) == CgroupLimits(None, None, None)


@settings(deadline=None)
@given(affinity=st.integers(1, 512), quota=st.one_of(st.none(), st.floats(0.01, 1024)))
def test_usable_cores_obey_both_limits(affinity: int, quota: float | None) -> None:
    """At least one core, never more than either limit allows."""
    cores = usable_cores(affinity, quota)
    assert 1 <= cores <= affinity
    assert quota is None or cores <= max(1.0, quota)
    assert quota is None or cores == affinity or cores + 1 > quota or cores == 1


def test_instruction_sets_have_one_name_each() -> None:
    """The kernel and py-cpuinfo spell some of them differently; what ggml has no kernels for is left out."""
    flags = ["fpu", "avx2", "avx512vnni", "avx512_vnni", "pni", "asimd", "sve"]
    assert instruction_sets(flags) == ("avx2", "avx512_vnni", "neon", "sse3", "sve")


def test_shared_caches_are_counted_once(tmp_path: Path) -> None:
    """Two chiplets with a third-level cache each, every one of them listed by each of its cores."""
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for level, size, who in ((1, "32K", str(core)), (3, "32768K", shared)):
            index = tmp_path / f"cpu{core}/cache/index{level}"
            write(index / "level", f"{level}\n")
            write(index / "size", f"{size}\n")
            write(index / "shared_cpu_list", f"{who}\n")
    assert last_level_cache_bytes(tmp_path) == 2 * 32768 * 1024


def test_unknown_caches_are_none(tmp_path: Path) -> None:
    """Some virtual machines hide them."""
    assert last_level_cache_bytes(tmp_path) is None


def test_this_processor_is_described() -> None:
    """A name, and cores in the order that nature gives them."""
    cpu = read_cpu(CgroupLimits(None, None, None))
    assert cpu.model
    assert 1 <= cpu.usable_cores <= cpu.logical_cores
    assert cpu.physical_cores <= cpu.logical_cores
    assert cpu.instruction_sets == tuple(sorted(set(cpu.instruction_sets)))


@pytest.mark.parametrize("quota", [0.5, 1.0])
def test_quota_of_the_group_reaches_the_description(quota: float) -> None:
    """Threads beyond the quota would only be throttled."""
    assert read_cpu(CgroupLimits(quota, None, None)).usable_cores == 1
