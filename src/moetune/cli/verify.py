"""`moetune profiles verify`."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moetune import __version__
from moetune.autotune.display import Display
from moetune.autotune.evaluate import allowance_s
from moetune.autotune.events import Phase
from moetune.autotune.race import Rules
from moetune.autotune.request import SearchRequest
from moetune.autotune.sequential import fewest_that_prove
from moetune.autotune.trace import build_trace, shape_for
from moetune.autotune.verify import Holding, Recheck, renewed, verify
from moetune.cli.baseline import check_devices, check_memory
from moetune.cli.flags import Emulate, ModelFile, Overcommit, Verbose
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note, printable, show, wrapped
from moetune.cli.selection import Here
from moetune.engine.config import EngineConfig
from moetune.engine.library import engine_version
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore, name_of
from moetune.profiles.workload import PRESETS, Workload, load_workload

_ROUNDS = 6


def verify_profile(
    name: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or as much as tells it apart.")],
    model_file: ModelFile,
    workload: Annotated[
        str | None, typer.Option("--workload", metavar="FILE", help="The workload's file, where it is no preset.")
    ] = None,
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=fewest_that_prove(Rules.risk), help="Most rounds; more can tell smaller gains."),
    ] = _ROUNDS,
    save: Annotated[
        bool, typer.Option("--save", help="If it holds, keep it as this machine's profile, with the new figures.")
    ] = False,
    emulate: Emulate = None,
    allow_overcommit: Overcommit = False,
    format: Printed = Format.TABLE,
    verbose: Verbose = False,
) -> None:
    """Measure a profile's configuration again, side by side with the baseline that it beat.

    For after a new driver or version, or a profile from another machine. The exit code is 9 where it does not hold, or
    where the rounds could not tell. An emulated machine comes back by itself; --emulate asks for another.

    \b
    moetune profiles verify 1f0c model.gguf
    moetune profiles verify 1f0c model.gguf --rounds 12 --save
    """
    store = ProfileStore()
    profile = store.named(name)
    model = read_model(model_file)
    baseline = _baseline(profile, model)
    chosen = _workload(profile, workload)
    emulated = emulated_machine(emulate or profile.emulated)
    machine = seen_machine(model, emulated)
    for config in (profile.config, baseline):
        check_devices(machine, config)
        _check_routing(config)
        check_memory(model, machine, config, allow_overcommit=allow_overcommit)
    changed = Here(machine.fingerprint, engine_version()).why_not(profile)
    if changed:
        note(wrapped(f"{name_of(profile)[:8]} was {changed}. It is measured on {machine.label} now."))
    # As it would be kept, but for the figures.
    profile = replace(
        profile,
        machine_fingerprint=machine.fingerprint,
        machine_label=machine.label,
        engine_version=engine_version(),
        emulated=str(emulated) if emulated is not None else None,
        moetune_version=__version__,
    )
    if save:
        store.check_writable()
        if changed:
            store.require_free(profile)
    shape = shape_for(chosen, profile.n_ctx)
    display = Display(Console(stderr=True), model.n_layers, emulated=emulated is not None)
    with EngineRunner(model.path, emulated) as runner, display:
        display.phase(Phase.RACE, 0)
        checked = verify(
            profile,
            baseline,
            build_trace(chosen, shape, profile.n_ctx, runner),
            runner,
            rules=Rules(most_rounds=rounds),
            time_limit_s=allowance_s(SearchRequest.longest_trial_s, model),
            progress=display.race_progress,
        )
    show(
        printable(wrapped(checked.sentence), keep="\n")
        if format is Format.TABLE
        else written(_data(profile, checked), format)
    )
    if save and checked.holding is Holding.HOLDS:
        note(f"Saved: {store.save(renewed(profile, checked))}")
    elif save:
        note("Not saved: only what holds is kept as this machine's.")
    if not checked.good:
        raise typer.Exit(ExitCode.UNPROVEN)


def _baseline(profile: Profile, model: Model) -> EngineConfig:
    if profile.model_fingerprint != model.fingerprint:
        raise MoetuneError(
            f"The profile {name_of(profile)[:8]} is for another model: {profile.model_name}.",
            "Give the file of that model.",
            ExitCode.USAGE,
        )
    if profile.baseline_config is None:
        raise MoetuneError(
            f"The profile {name_of(profile)[:8]} is of an older moetune and does not say what it was compared with.",
            "Search again: `moetune search` keeps that now.",
            ExitCode.USAGE,
        )
    return profile.baseline_config


def _workload(profile: Profile, given: str | None) -> Workload:
    if given is None and profile.workload not in PRESETS:
        raise MoetuneError(
            f"The profile is for the workload {profile.workload!r}, which is none of moetune's own.",
            "Give its file with --workload FILE.",
            ExitCode.USAGE,
        )
    chosen = load_workload(given or profile.workload)
    if chosen.name != profile.workload:
        raise MoetuneError(
            f"The profile is for the workload {profile.workload!r}, not {chosen.name!r}.",
            "Leave --workload out, or give the file of that name.",
            ExitCode.USAGE,
        )
    return chosen


def _check_routing(config: EngineConfig) -> None:
    path = config.cache.routing if config.cache is not None else None
    if path is not None and not Path(path).is_file():
        raise MoetuneError(
            f"The profile uses recorded routing, and there is no {path}.",
            "Record it: moetune trace MODEL --workload NAME.",
            ExitCode.STORAGE,
        )


def _data(profile: Profile, checked: Recheck) -> dict[str, Any]:
    data = asdict(checked)
    data["gain_when_made"] = {"gain": profile.gain, "low": profile.gain_low, "high": profile.gain_high}
    if checked.interval is not None and math.isinf(checked.interval.high):
        data["interval"]["high"] = None  # JSON has no infinity
    return data
