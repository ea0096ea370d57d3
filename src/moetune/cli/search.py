"""`moetune search`."""

import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from moetune import __version__
from moetune.autotune.display import Display
from moetune.autotune.quality import QualityLevel
from moetune.autotune.race import Rules
from moetune.autotune.request import DEFAULT_KV_TYPES, SearchRequest
from moetune.autotune.result import SearchResult, profile_of
from moetune.autotune.sampler import Sampler, require
from moetune.autotune.search import search as find_fastest
from moetune.autotune.sequential import fewest_that_prove
from moetune.autotune.table import result_table
from moetune.autotune.trace import shape_for
from moetune.autotune.verdict import VerdictKind
from moetune.cli.flags import Emulate, ModelFile, Overcommit, Storage, Verbose, context_for, duration_s, kv_types
from moetune.cli.folders import studies_folder
from moetune.cli.formats import Format, Printed, written
from moetune.cli.machine import emulated_machine, fast_tier_name, measured_machine
from moetune.cli.output import note, show, wrapped
from moetune.cli.plan import recorded_hits
from moetune.cli.storage import database_of
from moetune.cli.texts import read_quality_text
from moetune.engine.emulator import EmulatedMachine
from moetune.engine.library import engine_version
from moetune.engine.measurement import Failed, FailureReason
from moetune.engine.model import read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine
from moetune.profiles.schema import Profile, to_data
from moetune.profiles.store import ProfileStore
from moetune.profiles.workload import load_workload

_MOST_FINALISTS = 12
# With fewer a race of so many could not name anybody.
_FEWEST_ROUNDS = fewest_that_prove(Rules.risk / _MOST_FINALISTS)


def search(
    model_file: ModelFile,
    workload: Annotated[
        str, typer.Option("--workload", help="What to be fast at: chat, code, long, or a YAML file of your own.")
    ] = "chat",
    ctx: Annotated[
        int | None, typer.Option("--ctx", help="Context in tokens; default: what the workload needs.")
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Configurations to try besides the baselines.")
    ] = SearchRequest.n_trials,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Time for everything, the race included: 90s, 10m, 2h.")
    ] = None,
    patience: Annotated[
        int, typer.Option("--patience", min=1, help="End the trials when so many in a row brought nothing.")
    ] = SearchRequest.patience,
    rounds: Annotated[
        int, typer.Option("--rounds", min=_FEWEST_ROUNDS, help="Most rounds of the race; more can prove smaller gains.")
    ] = Rules.most_rounds,
    finalists: Annotated[
        int, typer.Option("--finalists", min=1, max=_MOST_FINALISTS, help="Most trials that race the best baseline.")
    ] = SearchRequest.finalists,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="llama.cpp's names of the fast tiers, default all GPUs; 'none' for the CPU alone."
        ),
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="KV-cache types that may compete, separated by commas.")] = ",".join(
        DEFAULT_KV_TYPES
    ),
    quality: Annotated[
        QualityLevel, typer.Option("--quality", help="What KV-cache types may cost in quality, measured on this model.")
    ] = SearchRequest.quality,
    quality_text: Annotated[
        Path | None,
        typer.Option("--quality-text", metavar="FILE", help="Measure that on this text; default: the workload's own."),
    ] = None,
    emulate: Emulate = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampler.")] = SearchRequest.seed,
    sampler: Annotated[
        Sampler, typer.Option("--sampler", help="Who proposes trials; gp needs 'moetune[gp]'.")
    ] = SearchRequest.sampler,
    allow_overcommit: Overcommit = SearchRequest.allow_overcommit,
    storage: Storage = None,
    format: Printed = Format.TABLE,
    verbose: Verbose = False,
) -> None:
    """Find the fastest way to run the model here, prove it against stock llama.cpp, and remember it.

    Ctrl-C keeps what was measured; the same command goes on from there.

    \b
    moetune search model.gguf
    moetune search model.gguf --workload code --ctx 16384 --budget 20m
    moetune search model.gguf --kv f16,q8_0,q4_0 --quality ok --quality-text mails.txt
    moetune search model.gguf --emulate desktop
    moetune search model.gguf --storage postgresql://tuner@host/moetune
    """
    began_s = time.monotonic()
    budget_s = duration_s(budget) if budget is not None else None
    chosen = load_workload(workload)
    competing = kv_types(kv)
    require(sampler)
    own_text = read_quality_text(quality_text) if quality_text is not None else None
    database = database_of(storage)
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    n_ctx = context_for(ctx, model, chosen)
    shape_for(chosen, n_ctx)
    store = ProfileStore()
    store.check_writable()
    machine = measured_machine(model, emulated)
    request = SearchRequest(
        workload=chosen,
        n_ctx=n_ctx,
        state_dir=studies_folder(),
        engine_version=engine_version(),
        n_trials=trials,
        budget_s=None if budget_s is None else max(0.0, budget_s - (time.monotonic() - began_s)),
        patience=patience,
        rules=Rules(most_rounds=rounds),
        finalists=finalists,
        device=fast_tier_name(machine, device, emulated),
        kv_types=competing,
        seed=seed,
        sampler=sampler,
        hits=recorded_hits(model),
        allow_overcommit=allow_overcommit,
        routing=store.recorded_routing(model.fingerprint),
        quality=quality,
        quality_text=own_text,
        database=database,
    )
    display = Display(Console(stderr=True), model.n_layers, emulated=emulated is not None)
    with EngineRunner(model.path, emulated) as runner, display:
        result = find_fastest(request, runner, machine, model, display)
    # What a program reads is the profile alone.
    say = show if format is Format.TABLE else note
    if result.records:
        say(f"\n{result_table(result)}\n")
    if result.verdict.kind in (VerdictKind.NOTHING_RAN, VerdictKind.NO_BASELINE):
        raise _nothing_ran(result)
    say(wrapped(result.verdict.sentence))
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    profile = _profile(result, machine, emulated)
    if profile is None:
        return
    path = store.save(profile)
    say(f"Saved: {path}")
    again = f" --emulate {quote(str(emulated))}" if emulated else ""
    say(f'Next:  moetune run {quote(str(model_file))}{again} -p "..."')
    if format is not Format.TABLE:
        show(written({"saved": str(path), **to_data(profile)}, format))


def _nothing_ran(result: SearchResult) -> MoetuneError:
    failed = [record.outcome for record in result.records if isinstance(record.outcome, Failed)]
    if failed and all(outcome.reason is FailureReason.LOAD_FAILED for outcome in failed):
        cause = f"llama.cpp cannot load this model: {' '.join(failed[0].detail.split())}"
        return MoetuneError(cause, "The file is damaged, or made for a newer llama.cpp; get it again.", ExitCode.MODEL)
    return MoetuneError(
        result.verdict.sentence,
        "Free memory or choose another --device or a smaller --ctx; the same command tries what is left.",
        ExitCode.ENGINE,
    )


def _profile(result: SearchResult, machine: Machine, emulated: EmulatedMachine | None) -> Profile | None:
    profile = profile_of(
        result, machine_fingerprint=machine.fingerprint, machine_label=machine.label, moetune_version=__version__
    )
    # The text that brings the emulated machine back, not the description of its device.
    return replace(profile, emulated=str(emulated) if emulated else None) if profile is not None else None
