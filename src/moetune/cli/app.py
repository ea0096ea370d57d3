"""The command `moetune` and its subcommands."""

from typing import Annotated

import typer

from moetune import __version__
from moetune.cli.config_file import read_defaults
from moetune.cli.export import export
from moetune.cli.inspect import inspect
from moetune.cli.monitor import monitor
from moetune.cli.plan import plan
from moetune.cli.probe import probe
from moetune.cli.profiles import profiles
from moetune.cli.report import report
from moetune.cli.run import run
from moetune.cli.search import search
from moetune.cli.serve import serve
from moetune.cli.study import study
from moetune.cli.trace import trace

# rich's boxes would break `--help` in pipes and ignore terminal width.
app = typer.Typer(
    name="moetune",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moetune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def moetune(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The fastest way to run one Mixture-of-Experts GGUF model on this machine, found by measuring.

    \b
    moetune probe               what this machine is, measured
    moetune inspect MODEL.gguf  what is in it, and how much of it fits here
    moetune plan MODEL.gguf     what it would do here, predicted
    moetune search MODEL.gguf   find and prove what is fastest, and remember it
    moetune run MODEL.gguf      chat with the model, run with what was found
    moetune serve MODEL.gguf    serve it to OpenAI's clients, as it was found
    moetune monitor             watch a running model in another terminal
    moetune report MODEL.gguf   what was found as one HTML page with charts
    moetune export MODEL.gguf   what was found as a start of stock llama-server
    moetune profiles list       what was found; share it, measure it again
    moetune study list          what was searched, and every trial
    moetune trace MODEL.gguf --text FILE  which experts a text uses
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        context.default_map = read_defaults(context.command)


app.command(short_help="Show what this machine is, measured.")(probe)
app.command(short_help="Show what is in a model, and how much of it fits here.")(inspect)
app.command(short_help="Predict memory and speed, and what limits them.")(plan)
app.command(short_help="Find, prove and remember the fastest configuration.")(search)
app.command(short_help="Chat with the model, or ask it once, with what was found.")(run)
app.command(short_help="Serve the model to OpenAI's clients, with what was found.")(serve)
app.command(short_help="Watch a running model: tokens, KV cache, experts, memory.")(monitor)
app.command(short_help="Write what was found as one HTML page with charts.")(report)
app.command(short_help="Write what was found as a start of stock llama-server.")(export)
app.add_typer(profiles, name="profiles", short_help="List, show, share, verify or remove what was found.")
app.add_typer(study, name="study", short_help="List, show, export or drop searches.")
app.command(short_help="Record which experts the model uses, and how each cache policy would do.")(trace)
