"""`moetune study list|show|export|drop`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetune.autotune.export import summary_of, to_csv, to_dict, to_json
from moetune.autotune.shelf import Shelf
from moetune.autotune.study_table import studies_table, study_table
from moetune.cli.confirm import confirm
from moetune.cli.flags import Storage
from moetune.cli.formats import Format, Printed, written
from moetune.cli.output import note, printable, show, wrapped
from moetune.cli.progress import waiting
from moetune.cli.storage import kept_studies
from moetune.profiles.store import write_file

Name = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, or as much of it as tells it apart.")]
study = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


class ExportFormat(StrEnum):
    """What `export` writes."""

    JSON = "json"
    CSV = "csv"


@study.callback(invoke_without_command=True)
def studies(context: typer.Context) -> None:
    """What was searched, and every trial of it.

    \b
    moetune study list
    moetune study show 4be1
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@study.command("list", short_help="Every search that is remembered.")
def list_studies(format: Printed = Format.TABLE, storage: Storage = None) -> None:
    """List the studies: what was searched on which machine, how many trials, and the best turn time.

    \b
    moetune study list
    moetune study list --storage postgresql://tuner@host/moetune
    """
    shelf = _read(storage)
    for error in shelf.unusable:
        note(wrapped(f"warning: {error.cause} {error.remedy}"))
    if format is not Format.TABLE:
        show(written([summary_of(found) for found in shelf.studies], format))
    elif shelf.studies:
        show(printable(studies_table(shelf.studies), keep="\n"))
    else:
        note("There are no studies yet; `moetune search MODEL` begins one.")


@study.command("show", short_help="The trials of one study.")
def show_study(name: Name, format: Printed = Format.TABLE, storage: Storage = None) -> None:
    """Show every trial of a study: its outcome, turn time and speeds, which constraints it broke, and who ran it.

    \b
    moetune study show 4be1
    moetune study show 4be1 --format yaml
    """
    found = _read(storage).find(name)
    table = format is Format.TABLE
    show(printable(study_table(found), keep="\n") if table else written(to_dict(found), format))


@study.command("export", short_help="One study with all raw samples, as JSON or CSV.")
def export_study(
    name: Name,
    file_format: Annotated[
        ExportFormat, typer.Option("--format", help="JSON has everything; CSV has a line a trial.")
    ] = ExportFormat.JSON,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: standard output.")] = None,
    storage: Storage = None,
) -> None:
    """Write a study with everything that was measured, raw samples included.

    \b
    moetune study export 4be1 > study.json
    moetune study export 4be1 --format csv --out trials.csv
    """
    found = _read(storage).find(name)
    text = to_json(found) + "\n" if file_format is ExportFormat.JSON else to_csv(found)
    if out is None:
        sys.stdout.write(text)
    else:
        write_file(out, text.encode())
        note(f"Written: {out}")


@study.command("drop", short_help="Forget one study for good.")
def drop_study(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: Storage = None,
) -> None:
    """Delete a study with all it measured; profiles made from it stay. Asks first.

    \b
    moetune study drop 4be1
    """
    found = _read(storage).find(name)
    about = found.identity
    what = f"{about.model_name}, {about.workload}, context {about.n_ctx}, {len(found.records)} trials"
    if not yes:
        confirm(f"Delete {found.key[:8]} ({what})?", "whether to delete the study")
    kept_studies(storage).drop(found.key)
    note(f"Deleted: {found.key[:8]} ({what})")


def _read(storage: str | None) -> Shelf:
    with waiting("reading the studies"):
        return kept_studies(storage).read()
