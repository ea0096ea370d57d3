"""What this machine is, without anything that tells one specimen from another (names, serial numbers, addresses)."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

_LSCPU = (
    *("Architecture", "Model name", "CPU(s)", "Thread(s) per core", "Core(s) per socket", "Socket(s)", "NUMA node(s)"),
    *("L1d cache", "L2 cache", "L3 cache", "Hypervisor vendor", "Flags"),
)
_NVIDIA = (
    *("name", "driver_version", "memory.total", "compute_cap", "pcie.link.gen.max", "pcie.link.width.max"),
    *("clocks.max.sm", "clocks.max.memory", "clocks.sm", "clocks.memory", "power.limit", "persistence_mode"),
    *("ecc.mode.current", "mig.mode.current", "temperature.gpu"),
)

Description = dict[str, str | list[dict[str, str]]]


def describe_machine() -> Description:
    """Processor, memory, GPUs and compilers, as their own tools name them; what is not there is left out."""
    described: Description = {"system": f"{platform.system()} {platform.release()}"}
    described |= {f"cpu: {key}": value for key, value in _pairs(_output("lscpu")).items() if key in _LSCPU}
    memory = _pairs(Path("/proc/meminfo").read_text())
    described |= {
        f"memory: {key}": memory[key] for key in ("MemTotal", "MemAvailable", "Hugepagesize") if key in memory
    }
    gpus = _output("nvidia-smi", f"--query-gpu={','.join(_NVIDIA)}", "--format=csv,noheader")
    described["gpus"] = [
        dict(zip(_NVIDIA, (field.strip() for field in line.split(",")), strict=False)) for line in gpus.splitlines()
    ]
    for tool, flag in (("nvcc", "--version"), ("c++", "--version"), ("cmake", "--version")):
        text = _output(tool, flag).splitlines()
        if text:
            described[tool] = next((line for line in text if "release" in line), text[0])
    return described


def physical_cores() -> int:
    """Cores that this process may run on, each counted once however many threads it has."""
    allowed = os.sched_getaffinity(0)
    cores = {
        tuple(fields[1:3])
        for fields in (line.split(",") for line in _output("lscpu", "-p=CPU,CORE,SOCKET").splitlines())
        if fields[0].isdigit() and int(fields[0]) in allowed
    }
    return len(cores) or len(allowed)


def _pairs(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""
