"""What runs when there is no profile: the first baseline that a search would measure."""

from dataclasses import replace

from moetune.autotune.baselines import STOCK_CPU, Baseline, fixed_baselines
from moetune.autotune.memory import memory_of, require_memory
from moetune.autotune.request import SearchRequest
from moetune.autotune.space import build_space
from moetune.autotune.tier import NO_DEVICE
from moetune.cli.folders import studies_folder
from moetune.engine.config import EngineConfig
from moetune.engine.library import engine_version
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine
from moetune.profiles.workload import Workload


def baseline_for(model: Model, machine: Machine, device: str | None, workload: Workload, n_ctx: int) -> Baseline:
    """Stock llama.cpp with default settings, experts in RAM and the rest on the fast tier if it has room for that."""
    request = SearchRequest(workload, n_ctx, studies_folder(), engine_version(), device=device)
    memory = memory_of(model, machine, device)
    baselines = fixed_baselines(build_space(model, machine.cpu, memory, request))
    on_cpu = next((b for b in baselines if b.name == STOCK_CPU), baselines[0])
    return baselines[0] if memory.fits_fast(baselines[0].config) else on_cpu


def check_devices(machine: Machine, config: EngineConfig) -> None:
    """Raise `MoetuneError` (DEVICE) for a configuration of a profile whose devices are not all there now."""
    needed = [name for name in (config.device, *config.more_devices) if name is not None]
    gone = [name for name in needed if name not in [known.name for known in machine.devices]]
    if gone:
        raise MoetuneError(
            f"The profile runs on the device {gone[0]}, which is not there now.",
            "Bring the device back, or search again.",
            ExitCode.DEVICE,
        )


def check_memory(model: Model, machine: Machine, config: EngineConfig, *, allow_overcommit: bool) -> None:
    """Raise `MoetuneError` (MEMORY) for a configuration that this machine has no room for now."""
    require_memory(memory_of(model, machine, _devices(config)), config, allow_overcommit)


def has_room(model: Model, machine: Machine, config: EngineConfig) -> bool:
    """Whether the fast tier and RAM hold the configuration, at least without the cache's slots: those can be fewer."""
    bare = replace(config, cache=replace(config.cache, slots=0, budget_bytes=0)) if config.cache is not None else config
    return max(memory_of(model, machine, _devices(config)).excess_bytes(bare)) <= 0


def _devices(config: EngineConfig) -> str:
    return ",".join((config.device, *config.more_devices)) if config.device is not None else NO_DEVICE
