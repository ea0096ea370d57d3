"""The CPU and memory limits that control groups (versions 1 and 2) put on this process."""

from pathlib import Path
from typing import NamedTuple


class CgroupLimits(NamedTuple):
    """None where no group limits; ``cores`` may be a fraction, ``memory_used_bytes`` leaves out reclaimable pages."""

    cores: float | None
    memory_bytes: int | None
    memory_used_bytes: int | None


class _Hierarchy(NamedTuple):
    version: int
    controllers: frozenset[str]
    top: Path
    group: Path


def read_cgroup_limits(proc: Path = Path("/proc/self")) -> CgroupLimits:
    """The tightest limit on the way from this process's group up to the root it can see."""
    cores: list[float] = []
    memory: list[tuple[int, int]] = []
    for hierarchy in _hierarchies(proc):
        for folder in _upwards(hierarchy):
            cores += _core_limit(folder, hierarchy)
            memory += _memory_limit(folder, hierarchy)
    limit, used = min(memory, default=(None, None))
    return CgroupLimits(min(cores, default=None), limit, used)


def _hierarchies(proc: Path) -> list[_Hierarchy]:
    groups: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    found = []
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount_point = before.split()[3:5]
        fs_type, _, options = after.split(" ", 2)
        if fs_type == "cgroup2" and "" in groups:
            version, names = 2, frozenset({"cpu", "memory"})
            path = groups[""]
        elif fs_type == "cgroup" and (names := frozenset(options.split(",")) & {"cpu", "memory"} & groups.keys()):
            version = 1
            path = groups[next(iter(names))]
        else:
            continue
        # In a container the mount may show only a part of the tree, and the path may start above it.
        inside = path.removeprefix(root) if root != "/" else path
        found.append(_Hierarchy(version, names, Path(mount_point), Path(mount_point) / inside.lstrip("/")))
    return found


def _upwards(hierarchy: _Hierarchy) -> list[Path]:
    above = [hierarchy.group, *hierarchy.group.parents]
    return above[: above.index(hierarchy.top) + 1] if hierarchy.top in above else [hierarchy.top]


def _core_limit(folder: Path, hierarchy: _Hierarchy) -> list[float]:
    if "cpu" not in hierarchy.controllers:
        return []
    if hierarchy.version == 2:
        words = " ".join(_lines(folder / "cpu.max")).split()
    else:
        words = _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
    if len(words) != 2 or words[0] == "max" or int(words[0]) <= 0:
        return []
    return [int(words[0]) / int(words[1])]


def _memory_limit(folder: Path, hierarchy: _Hierarchy) -> list[tuple[int, int]]:
    if "memory" not in hierarchy.controllers:
        return []
    v2 = hierarchy.version == 2
    limit = _lines(folder / ("memory.max" if v2 else "memory.limit_in_bytes"))
    used = _lines(folder / ("memory.current" if v2 else "memory.usage_in_bytes"))
    # Version 1 writes "no limit" as the largest page-aligned 63-bit number.
    if not limit or not used or limit[0] == "max" or int(limit[0]) >= 1 << 60:
        return []
    key = "inactive_file " if v2 else "total_inactive_file "
    cache = next((int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(key)), 0)
    return [(int(limit[0]), max(0, int(used[0]) - cache))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
