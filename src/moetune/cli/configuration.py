"""Which configuration a command that runs the model uses: the profile that fits, or the baseline; said to the user."""

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from moetune.cli.baseline import baseline_for
from moetune.cli.flags import context_for
from moetune.cli.machine import fast_tier_name
from moetune.cli.output import note, wrapped
from moetune.cli.selection import Wanted, choose
from moetune.engine.config import EngineConfig
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.library import engine_version
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
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


def configuration(wished: Wish, model: Model, machine: Machine, emulated: EmulatedMachine | None) -> EngineConfig:
    """The profile's for exactly this model, machine and engine, or the baseline's. Raises MoetuneError."""
    wanted = Wanted(
        model_fingerprint=model.fingerprint,
        machine_fingerprint=machine.fingerprint,
        engine_version=engine_version(),
        n_ctx=wished.ctx,
        workload=wished.name,
    )
    choice = choose(ProfileStore(), wanted)
    for remark in choice.remarks:
        note(remark)
    if choice.profile:
        return _guarded(_apply(choice.profile, machine))
    baseline = baseline_for(model, machine, fast_tier_name(machine, None, emulated), wished.typical, wished.n_ctx)
    note(f"no profile applies; running the baseline: {baseline.name}")
    note(f"to find a faster way: {_search_command(model.path, wished, emulated)}")
    return baseline.config


def _guarded(config: EngineConfig) -> EngineConfig:
    """Text and machine are not quite those of the search: the cache goes off by itself where it does not pay."""
    return replace(config, cache=replace(config.cache, guard=True)) if config.cache is not None else config


def _search_command(model_file: Path, wished: Wish, emulated: EmulatedMachine | None) -> str:
    command = ["moetune", "search", quote(str(model_file))]
    command += ["--workload", quote(wished.workload)] if wished.workload else []
    command += ["--ctx", str(wished.ctx)] if wished.ctx else []
    command += ["--emulate", quote(str(emulated))] if emulated else []
    return " ".join(command)


def _apply(profile: Profile, machine: Machine) -> EngineConfig:
    needed = [name for name in (profile.config.device, *profile.config.more_devices) if name is not None]
    gone = [name for name in needed if name not in [known.name for known in machine.devices]]
    if gone:
        raise MoetuneError(
            f"The profile runs on the device {gone[0]}, which is not there now.",
            "Bring the device back, or search again.",
            ExitCode.DEVICE,
        )
    emulated = f", emulated machine {profile.emulated}" if profile.emulated else ""
    note(f"profile: {profile.workload}, context {profile.n_ctx}, of {profile.created_at[:10]}{emulated}")
    note(wrapped(profile.verdict.sentence, indent=" " * 9))
    return profile.config
