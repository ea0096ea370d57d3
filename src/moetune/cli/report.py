"""`moetune report`."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetune import __version__
from moetune.autotune.quality_store import QualityStore
from moetune.autotune.shelf import Shelf, StoredStudy
from moetune.cli.extras import require
from moetune.cli.flags import Storage
from moetune.cli.folders import machines_folder, studies_folder
from moetune.cli.output import note, show, wrapped
from moetune.cli.progress import waiting
from moetune.cli.storage import kept_studies
from moetune.engine.model import Model, read_model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.cache import remembered_machines
from moetune.profiles.store import check_writable, write_file

if TYPE_CHECKING:
    from moetune.autotune.report.content import Report


def report(
    of: Annotated[
        str, typer.Argument(metavar="MODEL|STUDY", help="A GGUF file, for its latest study; or a study's name.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; default: moetune-report-STUDY.html here.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Also write every chart there, as a PNG file.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Write one HTML page with everything a search found: the verdict, what it rests on, and charts.

    The page holds all it shows and loads nothing from anywhere. Nothing is measured for it.

    \b
    moetune report model.gguf
    moetune report 4be1 --out report.html --png figures
    """
    require("A report", "report", "plotly", "matplotlib", "jinja2")
    model = read_model(of) if _is_file(of) else None
    with waiting("reading the study"):
        study = _study(of, model, storage)
    target = (out or Path(f"moetune-report-{study.key[:8]}.html")).absolute()
    for folder in (target.parent, png):
        if folder is not None:
            check_writable(folder)
    with waiting("drawing the page"):
        # Read only now: plotting libraries take a second to import.
        from moetune.autotune.report.page import page_of

        content = _content(study, model)
        write_file(target, page_of(content).encode())
    show(f"Report: {target}")
    if png is not None:
        _write_pictures(content, study, png)


def _is_file(text: str) -> bool:
    """Whether it is meant as a file; a study's name is hexadecimal."""
    try:
        is_there = Path(text).exists()
    except OSError:  # longer than any file's name
        is_there = False
    return is_there or text.lower().endswith(".gguf") or "/" in text


def _study(of: str, model: Model | None, storage: str | None) -> StoredStudy:
    kept = kept_studies(storage)
    if model is None:
        return kept.read().find(of)
    fingerprint = model.fingerprint
    return _latest(kept.read(lambda identity: identity.model == fingerprint), model)


def _latest(shelf: Shelf, model: Model) -> StoredStudy:
    for error in shelf.unusable:
        note(wrapped(f"warning: {error.cause} {error.remedy}"))
    measured = [study for study in shelf.studies if study.best is not None]
    if not measured:
        raise MoetuneError(
            f"No search of {model.name} is remembered.", f"Begin one: moetune search {model.path}", ExitCode.USAGE
        )
    latest, *others = measured
    if others:
        named = ", ".join(f"{s.key[:8]} ({s.identity.workload}, {s.identity.n_ctx:,})" for s in others[:4])
        note(wrapped(f"This is the latest of {len(measured)} studies; others: {named}."))
    return latest


def _content(study: StoredStudy, model: Model | None) -> "Report":
    from moetune.autotune.report.content import Sources, report_of

    identity = study.identity
    machines = remembered_machines(machines_folder())
    sources = Sources(
        study=study,
        model=model,
        machine=next((machine for machine in machines if machine.kind_fingerprint == identity.machine), None),
        known_quality=QualityStore(studies_folder() / "quality").of_model(identity.model, identity.engine),
    )
    return report_of(sources, version=__version__, now=datetime.now().astimezone())


def _write_pictures(content: "Report", study: StoredStudy, folder: Path) -> None:
    from moetune.autotune.report.draw_png import write_png

    subject = f"{study.identity.model_name[:60]}, {study.identity.workload}, context {study.identity.n_ctx:,}"
    subject += " (emulated)" if content.emulated else ""
    for figure in content.figures:
        if figure.empty:
            note(wrapped(f"not drawn: {figure.title}: {figure.empty}"))
        else:
            with waiting(f"drawing {figure.title}"):
                write_png(figure, subject, folder / f"{figure.key}.png")
    show(f"Pictures: {folder}")
