"""`moetune plan`."""

from pathlib import Path
from typing import Annotated

import typer

from moetune.autotune.cost_hits import HitCurve, curve_from_routing, curve_from_skew, stated_skew
from moetune.autotune.plan import plan_for
from moetune.autotune.plan_table import plan_table
from moetune.autotune.request import DEFAULT_KV_TYPES, SearchRequest
from moetune.autotune.trace import shape_for
from moetune.cli.flags import Emulate, ModelFile, Verbose, context_for, kv_types
from moetune.cli.folders import studies_folder
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, fast_tier_name, measured_machine
from moetune.cli.output import note, show, wrapped
from moetune.cli.progress import waiting
from moetune.engine.library import engine_version
from moetune.engine.model import Model, read_model
from moetune.engine.routing_file import read_routing
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine_file import read_machine_file
from moetune.profiles.store import ProfileStore
from moetune.profiles.workload import load_workload


def plan(
    model_file: ModelFile,
    machine: Annotated[
        Path | None, typer.Option("--machine", metavar="FILE", help="A YAML file that describes another machine.")
    ] = None,
    workload: Annotated[
        str, typer.Option("--workload", help="What to be fast at: chat, code, long, or a YAML file of your own.")
    ] = "chat",
    ctx: Annotated[
        int | None, typer.Option("--ctx", help="Context in tokens; default: what the workload needs.")
    ] = None,
    skew: Annotated[
        str | None,
        typer.Option("--skew", metavar="TAKEN@SHARE", help="How uneven routing is: 0.85@0.2; default: as recorded."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="llama.cpp's name of the fast tier; 'none' for the CPU alone.")
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="KV-cache types that may compete, separated by commas.")] = ",".join(
        DEFAULT_KV_TYPES
    ),
    emulate: Emulate = None,
    format: Printed = Format.TABLE,
    verbose: Verbose = False,
) -> None:
    """Predict memory and speed, and what limits them, without running the model.

    Hit rates come from the routing that `moetune trace` recorded, if there is any, else from --skew, else from an
    assumption that is named.

    \b
    moetune plan model.gguf
    moetune plan model.gguf --machine next-desktop.yaml --ctx 32768
    moetune plan model.gguf --skew 0.85@0.2 --format json
    """
    if machine is not None and emulate is not None:
        raise MoetuneError("--machine describes one machine and --emulate another.", "Use one of them.", ExitCode.USAGE)
    chosen, competing = load_workload(workload), kv_types(kv)
    stated = stated_skew(skew) if skew is not None else None
    described = read_machine_file(machine) if machine is not None else None
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    n_ctx = context_for(ctx, model, chosen)
    shape_for(chosen, n_ctx)
    here = described or measured_machine(model, emulated)
    hits = curve_from_skew(model.n_expert, model.n_expert_used, stated) if stated else recorded_hits(model)
    request = SearchRequest(
        workload=chosen,
        n_ctx=n_ctx,
        state_dir=studies_folder(),
        engine_version=engine_version(),
        device=fast_tier_name(here, device, emulated),
        kv_types=competing,
    )
    with waiting("predicting"):
        found = plan_for(request, here, model, hits)
    show(plan_table(found) if format is Format.TABLE else written(found.to_dict(), format))


def recorded_hits(model: Model) -> HitCurve | None:
    """Hit rates of the routing that `moetune trace` recorded of this model; None without one that can be used."""
    path = ProfileStore().routing_path(model.fingerprint)
    if not path.exists():
        return None
    try:
        routing = read_routing(path)
    except MoetuneError as error:
        note(wrapped(f"warning: {error.cause}"))
        return None
    return curve_from_routing(routing) if routing.model_fingerprint == model.fingerprint else None
