"""`moetune export`."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetune.autotune.verdict import seconds_instead_of
from moetune.cli.configuration import Wish, profile_for, search_command, wish
from moetune.cli.flags import Emulate, ModelFile
from moetune.cli.formats import Format, written
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note, stream, wrapped
from moetune.cli.selection import Here, what_it_is
from moetune.engine.config import CacheKnobs
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.launch_text import as_command, as_data, as_environment_file, as_systemd_unit
from moetune.engine.library import engine_version, ggml
from moetune.engine.model import Model, read_model
from moetune.engine.server_launch import EMULATOR_LINK, ServerLaunch, Setting, lost_cache, server_launch
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore, name_of, write_file


class Shape(StrEnum):
    """What `--as` takes."""

    COMMAND = "command"
    SYSTEMD = "systemd"
    ENV = "env"
    JSON = "json"
    YAML = "yaml"


def export(
    model_file: ModelFile,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="More flags for llama-server, after a --.")
    ] = None,
    shape: Annotated[Shape, typer.Option("--as", help="What to write.")] = Shape.COMMAND,
    stock: Annotated[bool, typer.Option("--stock", help="For a llama-server that cannot load the plugin.")] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="PROFILE", help="This one, also if it is of another machine.")
    ] = None,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Use the profile for this context, in tokens.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Use the profile for this workload: a preset's name or a file.")
    ] = None,
    server: Annotated[str, typer.Option("--server", metavar="PROGRAM", help="The program.")] = "llama-server",
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: standard output.")] = None,
    emulate: Emulate = None,
) -> None:
    """Write the tuned profile as a start of stock `llama-server`, which loads the cache as a plugin.

    With --stock without the plugin: the fastest configuration of stock llama.cpp that the search measured. What is
    lost, and what the program must be, goes to standard error.

    \b
    moetune export model.gguf
    moetune export model.gguf --stock -- --port 9000
    moetune export model.gguf --as systemd --out ~/.config/systemd/user/llama.service
    """
    if flags and shape is Shape.ENV:
        raise MoetuneError(
            "An environment file holds no flags.", "Add them to the command that reads it.", ExitCode.USAGE
        )
    if profile is not None and (ctx is not None or workload is not None):
        raise MoetuneError(
            "--profile names one profile; --ctx and --workload choose among several.",
            "Leave one of them out.",
            ExitCode.USAGE,
        )
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    wished = wish(model, ctx, workload)
    found = _named(profile, model, emulated) if profile is not None else _chosen(wished, model, emulated)
    launch = _launch(found, model, shutil.which(server) or server, stock=stock)
    launch = replace(launch, settings=(*launch.settings, *(Setting(flag, None, None) for flag in flags or ())))
    remarks = tuple(_remarks(found, launch, stock=stock))
    for remark in remarks:
        note(wrapped(remark))
    text = _text(launch, shape, model, remarks)
    if out is None:
        stream(text)
    else:
        write_file(out, text.encode())
        note(f"Written: {out}")


def _named(name: str, model: Model, emulated: EmulatedMachine | None) -> Profile:
    found = ProfileStore().named(name)
    if found.model_fingerprint != model.fingerprint:
        raise MoetuneError(
            f"The profile {name_of(found)[:8]} is for another model: {found.model_name}.",
            "Give the file of that model, or another profile.",
            ExitCode.USAGE,
        )
    foreign = Here(seen_machine(model, emulated).fingerprint, engine_version()).why_not(found)
    if foreign:
        note(wrapped(f"warning: {name_of(found)[:8]} was {foreign}. What it promises was not measured here."))
    return found


def _chosen(wished: Wish, model: Model, emulated: EmulatedMachine | None) -> Profile:
    """The one that `moetune run` would apply."""
    found = profile_for(wished, model, seen_machine(model, emulated))
    if found is None:
        search = search_command(model.path, wished, emulated)
        raise MoetuneError("No profile of this model applies here.", f"Make one: {search}", ExitCode.USAGE)
    return found


def _launch(profile: Profile, model: Model, program: str, *, stock: bool) -> ServerLaunch:
    cache, emulated = profile.config.cache, emulated_machine(profile.emulated)
    if not stock or cache is None:
        return server_launch(profile.config, model.path, program=program, emulated=emulated)
    # What the cache had to beat is the fastest that is known without it.
    best = profile.baseline_config or profile.config
    launch = server_launch(best, model.path, program=program, emulated=emulated, stock=True)
    return replace(launch, lost=lost_cache(cache))


def _remarks(profile: Profile, launch: ServerLaunch, *, stock: bool) -> Iterator[str]:
    yield from what_it_is(profile)
    if any(name == "GGML_BACKEND_PATH" for name, _ in launch.environment):
        version = ggml().ggml_version().decode()
        yield f"needs: a llama-server with ggml {version} as shared libraries; with another the plugin does nothing."
    if stock and launch.lost:
        yield from _losses(profile, launch)
    if launch.link is not None:
        yield f"emulated: the folder in which it starts must hold {EMULATOR_LINK}, a link to {launch.link}"


def _losses(profile: Profile, launch: ServerLaunch) -> Iterator[str]:
    usual = {lost.field: lost.value for lost in lost_cache(CacheKnobs(slots=-1))}
    knobs = ", ".join(f"{lost.field} {lost.value}" for lost in launch.lost if lost.value != usual[lost.field])
    yield f"lost without the plugin: the hot-expert cache ({knobs})."
    if profile.baseline_config is None:
        yield "The same settings without it were not measured; search again to know the best ones."
    elif profile.baseline_config != profile.config:
        slower = seconds_instead_of(profile.baseline.turn_s, profile.result.turn_s)
        yield f"These are the flags of {profile.baseline_name}: {slower} a turn."


def _text(launch: ServerLaunch, shape: Shape, model: Model, remarks: tuple[str, ...]) -> str:
    match shape:
        case Shape.COMMAND:
            return as_command(launch)
        case Shape.SYSTEMD:
            return as_systemd_unit(launch, f"llama-server with {model.name}", remarks)
        case Shape.ENV:
            return as_environment_file(launch, remarks)
        case Shape.JSON | Shape.YAML:
            data = {**as_data(launch), "remarks": list(remarks)}
            return written(data, Format.JSON if shape is Shape.JSON else Format.YAML) + "\n"
