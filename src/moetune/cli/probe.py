"""`moetune probe`."""

from pathlib import Path
from typing import Annotated

import typer

from moetune.cli.flags import Emulate, Verbose
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, measured_machine, seen_machine
from moetune.cli.output import show
from moetune.engine.model import read_model
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.render import machine_table


def probe(
    model_file: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A GGUF file, to measure its disk and its experts' size.")
    ] = None,
    format: Printed = Format.TABLE,
    emulate: Emulate = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Only look; time nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is remembered.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show what this machine is: processors, memory, devices, the links between them, and how fast each really is.

    \b
    moetune probe
    moetune probe model.gguf --format json
    moetune probe --emulate desktop
    """
    if no_measure and fresh:
        raise MoetuneError(
            "--fresh asks to measure again and --no-measure not to measure.", "Use one of them.", ExitCode.USAGE
        )
    model = read_model(model_file) if model_file else None
    emulated = emulated_machine(emulate)
    machine = seen_machine(model, emulated) if no_measure else measured_machine(model, emulated, fresh=fresh)
    show(machine_table(machine) if format is Format.TABLE else written(machine.to_dict(), format))
