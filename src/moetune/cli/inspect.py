"""`moetune inspect`."""

from typing import Annotated

import typer

from moetune.autotune.inspection import inspect_model
from moetune.autotune.inspection_table import inspection_table
from moetune.cli.flags import Emulate, ModelFile, Verbose, context_for
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, fast_tier_name, seen_machine
from moetune.cli.output import printable, show
from moetune.engine.model import read_model
from moetune.profiles.workload import PRESETS, load_workload


def inspect(
    model_file: ModelFile,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Context in tokens to look at; default: 4096.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Only these of llama.cpp's devices, separated by commas.")
    ] = None,
    emulate: Emulate = None,
    format: Printed = Format.TABLE,
    verbose: Verbose = False,
) -> None:
    """Show what is in a model's file, and how much of it fits this machine: layers, expert slots, context.

    Reads the file's header only; nothing is run and nothing is measured.

    \b
    moetune inspect model.gguf
    moetune inspect model.gguf --ctx 32768 --format json
    """
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    n_ctx = context_for(ctx, model, load_workload(PRESETS[0]))
    machine = seen_machine(model, emulated)
    found = inspect_model(model, machine, fast_tier_name(machine, device, emulated), n_ctx)
    show(printable(inspection_table(found), keep="\n") if format is Format.TABLE else written(found.to_dict(), format))
