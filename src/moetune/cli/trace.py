"""`moetune trace`."""

from pathlib import Path
from typing import Annotated

import typer

from moetune.autotune.knobs import default_threads
from moetune.cli.baseline import check_memory
from moetune.cli.flags import ModelFile, Overcommit, Verbose, check_context
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import seen_machine
from moetune.cli.output import note, show
from moetune.cli.progress import Bar, waiting
from moetune.cli.texts import NamedText, read_texts
from moetune.engine.config import EngineConfig
from moetune.engine.model import Model, read_model
from moetune.engine.routing import Routing
from moetune.engine.routing_figure import check_plotting, write_figure
from moetune.engine.routing_file import encode, read_routing
from moetune.engine.routing_pass import WorkloadTokens, record
from moetune.engine.routing_replay import POLICY_SETTINGS, check_settings
from moetune.engine.routing_report import RoutingReport, n_steps, report_on, slot_counts
from moetune.engine.routing_tables import report_tables
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.store import ProfileStore, check_writable, write_file

_DEFAULT_TOKENS = 8192
_LEAST_TOKENS = 16
_MOST_TOKENS = 1 << 20
_DEFAULT_CTX = 4096


def trace(
    model_file: ModelFile,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="[NAME=]FILE", help="A text to record routing on; once for each workload."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="Also the text of a workload: chat, code, long, or a YAML file of your own.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=_LEAST_TOKENS, max=_MOST_TOKENS, help="Most tokens of each workload.")
    ] = _DEFAULT_TOKENS,
    ctx: Annotated[
        int | None, typer.Option("--ctx", help="Cut texts into sequences of so many tokens at most.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=4096, help="To compute with; default: the physical cores.")
    ] = None,
    slots: Annotated[
        str | None, typer.Option("--slots", metavar="LIST", help="Slots a layer to replay, separated by commas.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Replay with another {', '.join(POLICY_SETTINGS)}."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The recording's file; default: beside the model's profiles.")
    ] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Also draw everything into this PNG file.")] = None,
    format: Printed = Format.TABLE,
    allow_overcommit: Overcommit = False,
    verbose: Verbose = False,
) -> None:
    """Record which experts the model chooses on your texts, and what each cache policy would make of it.

    One pass of stock llama.cpp over each text; everything shown is computed from that recording, which is kept.
    Without --text and --workload the kept recording is shown again.

    \b
    moetune trace model.gguf --text mail.txt --text code=parser.py --figure routing.png
    moetune trace model.gguf --workload code --workload chat
    moetune trace model.gguf --slots 8,16 --set interval=1
    """
    settings = tuple(set_ or ())
    check_settings(settings)
    if figure is not None:
        _check_figure(figure)
    texts = read_texts(text or (), workload or (), tokens)
    model = read_model(model_file)
    _require_experts(model)
    chosen_slots = _slots(slots, model.n_expert)
    path = (out or ProfileStore().routing_path(model.fingerprint)).absolute()
    if texts:
        check_writable(path.parent)
        config = _config(model, ctx, threads, allow_overcommit=allow_overcommit)
        routing = _record(model, config, texts, tokens)
        write_file(path, encode(routing))
    else:
        routing = _kept(path, model)
    report = _replayed(routing, chosen_slots or slot_counts(routing), settings)
    if figure is not None:
        write_figure(report, _figure_title(model), figure)
    _show(report, path, figure, format)


def _check_figure(figure: Path) -> None:
    check_plotting()
    if figure.suffix.lower() != ".png":
        raise MoetuneError(f"--figure {figure} is not a PNG file's name.", "Let it end in .png.", ExitCode.USAGE)
    check_writable(figure.absolute().parent)


def _require_experts(model: Model) -> None:
    if not model.is_moe:
        raise MoetuneError(
            f"{model.path} has no routed experts (architecture {model.architecture}): it is a dense model.",
            "Trace a Mixture-of-Experts model.",
            ExitCode.MODEL,
        )


def _config(model: Model, ctx: int | None, threads: int | None, *, allow_overcommit: bool) -> EngineConfig:
    """Stock llama.cpp on the CPU alone: what is routed where does not depend on who computes it."""
    machine = seen_machine(model, None)
    n_ctx = check_context(ctx if ctx is not None else min(_DEFAULT_CTX, model.context_length or _DEFAULT_CTX), model)
    config = EngineConfig(n_ctx=n_ctx, n_threads=threads or default_threads(machine.cpu))
    check_memory(model, machine, config, allow_overcommit=allow_overcommit)
    return config


def _record(model: Model, config: EngineConfig, texts: tuple[NamedText, ...], most_tokens: int) -> Routing:
    with EngineRunner(model.path) as runner:
        with waiting("reading the vocabulary and the texts"):
            workloads = tuple(_tokens_of(text, runner, most_tokens) for text in texts)
        with Bar("recording, tokens", sum(len(workload.tokens) for workload in workloads)) as bar:
            routing = record(runner, config, model.fingerprint, workloads, bar.advance)
    for workload in routing.workloads:
        note(f"recorded {workload.name}: {workload.n_tokens:,} tokens")
    return routing


def _tokens_of(text: NamedText, runner: EngineRunner, most: int) -> WorkloadTokens:
    tokens = tuple(token for piece in text.texts for token in runner.tokenize(piece))[:most]
    if len(tokens) < _LEAST_TOKENS:
        raise MoetuneError(
            f"The text {text.name!r} has only {len(tokens)} tokens; routing on it would say nothing.",
            f"Give at least {_LEAST_TOKENS} tokens, better some thousand.",
            ExitCode.USAGE,
        )
    return WorkloadTokens(text.name, tokens)


def _kept(path: Path, model: Model) -> Routing:
    try:
        routing = read_routing(path)
    except MoetuneError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise MoetuneError(
            f"No routing of this model is recorded yet: there is no {path}.",
            "Record it with --text FILE or --workload NAME.",
            ExitCode.USAGE,
        ) from error
    if routing.model_fingerprint != model.fingerprint:
        raise MoetuneError(
            f"The routing in {path} was recorded from another model.",
            "Give the model it belongs to, or record this one with --text FILE and another --out.",
            ExitCode.STORAGE,
        )
    return routing


def _slots(text: str | None, most: int) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 and 0 < int(part) <= most for part in parts):
        raise MoetuneError(
            f"--slots {text!r} is not a list of slots a layer.",
            f"Use numbers from 1 to {most}, separated by commas.",
            ExitCode.USAGE,
        )
    return tuple(sorted({int(part) for part in parts}))


def _replayed(routing: Routing, slots: tuple[int, ...], settings: tuple[str, ...]) -> RoutingReport:
    with Bar("analysing, layers", n_steps(routing)) as bar:
        return report_on(routing, slots, settings, bar.advance)


def _figure_title(model: Model) -> str:
    return f"Expert routing of {model.name}"


def _show(report: RoutingReport, path: Path, figure: Path | None, form: Format) -> None:
    show(f"{report_tables(report)}\n" if form is Format.TABLE else written(report.to_dict(), form))
    say = show if form is Format.TABLE else note
    say(f"Recording: {path}")
    if figure is not None:
        say(f"Figure:    {figure}")
