"""Which configuration a command that runs the model uses: the profile that fits, or the baseline; said to the user."""

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from moetune.cli.baseline import baseline_for, check_devices
from moetune.cli.flags import context_for
from moetune.cli.machine import fast_tier_name
from moetune.cli.output import note, wrapped
from moetune.cli.selection import Wanted, choose, what_it_is
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.library import engine_version
from moetune.engine.model import Model
from moetune.hardware.machine import Machine
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore
from moetune.profiles.workload import PRESETS, Workload, load_workload


@dataclass(frozen=True)
class Wish:
    """The profile a user asks for: `ctx` and `workload` are the flags, None for any.

    typical, n_ctx: what to run the baseline for when there is no such profile.
    """

    ctx: int | None
    workload: str | None
    name: str | None
    typical: Workload
    n_ctx: int


def wish(model: Model, ctx: int | None, workload: str | None) -> Wish:
    """Checks both flags; MoetuneError (USAGE) for what cannot be."""
    chosen = load_workload(workload) if workload else None
    typical = chosen or load_workload(PRESETS[0])
    return Wish(ctx, workload, chosen.name if chosen else None, typical, context_for(ctx, model, typical))


def profile_for(wished: Wish, model: Model, machine: Machine) -> Profile | None:
    """The profile for exactly this model, machine and engine; says which others there are when there is none."""
    wanted = Wanted(
        model_fingerprint=model.fingerprint,
        machine_fingerprint=machine.fingerprint,
        engine_version=engine_version(),
        n_ctx=wished.ctx,
        workload=wished.name,
    )
    choice = choose(ProfileStore(), wanted)
    for remark in choice.remarks:
        note(wrapped(remark))
    return choice.profile


def configuration(wished: Wish, model: Model, machine: Machine, emulated: EmulatedMachine | None) -> EngineConfig:
    """That of `profile_for`, or the baseline's. Raises MoetuneError."""
    profile = profile_for(wished, model, machine)
    if profile is not None:
        check_devices(machine, profile.config)
        name, promise = what_it_is(profile)
        note(wrapped(name))
        note(wrapped(promise, indent="  "))
        return _guarded(profile.config)
    baseline = baseline_for(model, machine, fast_tier_name(machine, None, emulated), wished.typical, wished.n_ctx)
    note(wrapped(f"no profile applies; running the baseline: {baseline.name}"))
    note(f"to find a faster way:\n  {search_command(model.path, wished, emulated)}")
    return baseline.config


def _guarded(config: EngineConfig) -> EngineConfig:
    """Text and machine are not quite those of the search: the cache goes off by itself where it does not pay."""
    return replace(config, cache=replace(config.cache, guard=True)) if config.cache is not None else config


def search_command(model_file: Path, wished: Wish, emulated: EmulatedMachine | None) -> str:
    """What to type for a search of just this."""
    command = ["moetune", "search", quote(str(model_file))]
    command += ["--workload", quote(wished.workload)] if wished.workload else []
    command += ["--ctx", str(wished.ctx)] if wished.ctx else []
    command += ["--emulate", quote(str(emulated))] if emulated else []
    return " ".join(command)
