"""`moetune profiles list|show|diff|export|import|verify|remove`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moetune.autotune.profile_table import differences, differences_table, profile_table, profiles_table
from moetune.cli.confirm import confirm
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note, printable, show, wrapped
from moetune.cli.selection import Here
from moetune.cli.verify import verify_profile
from moetune.engine.library import engine_version
from moetune.engine.model import read_model
from moetune.profiles.schema import Profile, read_profile, to_data
from moetune.profiles.sharing import for_here, for_sharing
from moetune.profiles.store import ProfileStore, name_of, write_file

Name = Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or as much as tells it apart.")]
NameOrFile = Annotated[
    str, typer.Argument(metavar="PROFILE", help="A profile's name, or a file with a slash or .yaml.")
]
profiles = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


class FileFormat(StrEnum):
    """What `export` writes; `import` reads both."""

    YAML = "yaml"
    JSON = "json"


@profiles.callback(invoke_without_command=True)
def all_profiles(context: typer.Context) -> None:
    """What searches found, kept to be run: look at it, share it, measure it again.

    \b
    moetune profiles list
    moetune profiles verify 1f0c model.gguf
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@profiles.command("list", short_help="Every profile that is remembered.")
def list_profiles(
    model: Annotated[Path | None, typer.Option("--model", metavar="MODEL", help="Only of this GGUF file.")] = None,
    emulate: Annotated[str | None, typer.Option("--emulate", metavar="SPEC", help="Here is this emulated one.")] = None,
    format: Printed = Format.TABLE,
) -> None:
    """List the profiles, the newest first, and which of them hold for this machine and engine.

    \b
    moetune profiles list
    moetune profiles list --model model.gguf --format json
    """
    store, here = ProfileStore(), _here(emulate)
    shelf = store.list() if model is None else store.candidates(read_model(model).fingerprint)
    for error in shelf.unusable:
        note(wrapped(f"warning: {error.cause} {error.remedy}"))
    found = [(profile, here.why_not(profile)) for profile in shelf.profiles]
    if format is not Format.TABLE:
        show(written([_data(profile, foreign) for profile, foreign in found], format))
    elif found:
        show(printable(profiles_table(found), keep="\n"))
    else:
        note("There are no profiles yet; `moetune search MODEL` makes one.")


@profiles.command("show", short_help="One profile: what it is for, and what was measured.")
def show_profile(
    name: NameOrFile,
    emulate: Annotated[str | None, typer.Option("--emulate", metavar="SPEC", help="Here is this emulated one.")] = None,
    format: Printed = Format.TABLE,
) -> None:
    """Show a profile: model, machine, verdict, figures and settings, and whether it holds here.

    \b
    moetune profiles show 1f0c
    moetune profiles show ./from-a-friend.yaml --format json
    """
    profile = _named(name)
    foreign = _here(emulate).why_not(profile)
    if format is Format.TABLE:
        show(printable(profile_table(profile, foreign), keep="\n"))
    else:
        show(written(_data(profile, foreign), format))


@profiles.command("diff", short_help="What differs between two profiles.")
def diff_profiles(name: NameOrFile, other: NameOrFile, format: Printed = Format.TABLE) -> None:
    """Show every field in which two profiles differ.

    \b
    moetune profiles diff 1f0c 88ab
    moetune profiles diff 1f0c ./from-a-friend.yaml
    """
    differing = differences(_named(name), _named(other))
    if format is not Format.TABLE:
        show(written({field: list(both) for field, both in differing.items()}, format))
    elif differing:
        show(printable(differences_table(differing, (name, other)), keep="\n"))
    else:
        note("The two are equal.")


@profiles.command("export", short_help="One profile as a file to share.")
def export_profile(
    name: Name,
    file_format: Annotated[FileFormat, typer.Option("--format", help="`import` reads both.")] = FileFormat.YAML,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: standard output.")] = None,
) -> None:
    """Write a profile for another machine's `moetune profiles import`; this machine's own paths stay here.

    \b
    moetune profiles export 1f0c > profile.yaml
    """
    data = to_data(for_sharing(ProfileStore().named(name)))
    text = written(data, Format.JSON if file_format is FileFormat.JSON else Format.YAML) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        write_file(out, text.encode())
        note(f"Written: {out}")


@profiles.command("import", short_help="Add a profile from a file.")
def import_profile(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `moetune profiles export` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of one for the same things.")] = False,
) -> None:
    """Check a profile and add it. One that was made on another machine stays marked so, and `run` does not apply it.

    \b
    moetune profiles import profile.yaml
    """
    store = ProfileStore()
    profile = for_here(read_profile(file), store)
    if not replace:
        store.require_free(profile)
    note(f"Imported: {store.save(profile)}")
    name = name_of(profile)[:8]
    foreign = _here(None).why_not(profile)
    if foreign:
        note(wrapped(f"{name} was {foreign}; `moetune run` will not apply it."))
        note(f"to measure it here: moetune profiles verify {name} MODEL --save")
    routing = profile.config.cache.routing if profile.config.cache else None
    if routing is not None and not Path(routing).is_file():
        note("It uses recorded routing, and none is recorded here yet: moetune trace MODEL --workload NAME")


profiles.command("verify", short_help="Measure again whether it still holds.")(verify_profile)


@profiles.command("remove", short_help="Forget one profile for good.")
def remove_profile(name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete a profile; the study it came from stays. Asks first.

    \b
    moetune profiles remove 1f0c
    """
    store = ProfileStore()
    profile = store.named(name)
    what = f"{name_of(profile)[:8]} ({profile.model_name}, {profile.workload}, context {profile.n_ctx})"
    if not yes:
        confirm(f"Delete {what}?", "whether to delete the profile")
    store.remove(profile)
    note(f"Deleted: {what}")


def _here(emulate: str | None) -> Here:
    return Here(seen_machine(None, emulated_machine(emulate)).fingerprint, engine_version())


def _named(text: str) -> Profile:
    """A name has neither slash nor dot."""
    return read_profile(Path(text)) if "/" in text or "." in text else ProfileStore().named(text)


def _data(profile: Profile, foreign: str | None) -> dict[str, Any]:
    return {"name": name_of(profile), "holds_here": foreign is None, "why_not": foreign, **to_data(profile)}
