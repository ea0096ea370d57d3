"""`moetune run`."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from moetune.autotune.words import describe
from moetune.cli.baseline import baseline_for, check_memory
from moetune.cli.chat import chat as talk
from moetune.cli.flags import Emulate, ModelFile, Overcommit, Verbose, context_for
from moetune.cli.machine import emulated_machine, fast_tier_name, seen_machine
from moetune.cli.output import note, wrapped
from moetune.cli.prompt import read_prompt
from moetune.cli.reply import print_json, print_reply
from moetune.cli.selection import Wanted, choose
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest
from moetune.engine.library import engine_version
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore
from moetune.profiles.workload import PRESETS, load_workload

_MAX_TEMPERATURE = 10.0
_MAX_TOKENS = 256
# Of the context, for each answer of a chat: where nothing is said, and at most.
_ANSWER_SHARE = 1 / 4
_LONGEST_SHARE = 1 / 2


def run(
    model_file: ModelFile,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="What to answer; default: standard input, on a terminal a chat."),
    ] = None,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Use the profile for this context, in tokens.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Use the profile for this workload: a preset's name or a file.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help=f"Stop after so many tokens; default: {_MAX_TOKENS}, in a chat a quarter of the context.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 always takes the likeliest token.")
    ] = GenerationRequest.temperature,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampling, above temperature 0.")] = (
        GenerationRequest.seed
    ),
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Use the model's chat template, or not; default: if the model has one."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object with the text and its figures.")] = False,
    emulate: Emulate = None,
    allow_overcommit: Overcommit = False,
    verbose: Verbose = False,
) -> None:
    """Run the model with the profile that `moetune search` saved for it: a chat, or one prompt.

    On a terminal, without -p, it is a chat; /help lists its commands. Else the prompt's answer is streamed to standard
    output. Which profile was applied, the speeds and the hit rate go to standard error. Without a profile the stock
    configuration runs, and the search that would make one is named.

    \b
    moetune run model.gguf
    moetune run model.gguf -p "Why is the sky blue?"
    moetune run model.gguf -p "Why is the sky blue?" --json
    git diff | moetune run model.gguf --workload code --raw --max-tokens 400
    """
    if not (math.isfinite(temperature) and 0 <= temperature <= _MAX_TEMPERATURE):
        raise MoetuneError(
            f"--temperature {temperature:g} is not possible.", f"Use 0 to {_MAX_TEMPERATURE:g}.", ExitCode.USAGE
        )
    chosen = load_workload(workload) if workload else None
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    typical = chosen or load_workload(PRESETS[0])
    n_ctx = context_for(ctx, model, typical)
    is_chat = prompt is None and not json_ and sys.stdin.isatty() and sys.stdout.isatty()
    request = GenerationRequest(
        prompt="" if is_chat else read_prompt(prompt),
        max_tokens=max_tokens or _MAX_TOKENS,
        temperature=temperature,
        seed=seed,
        chat=_wants_chat(chat, model),
    )
    machine = seen_machine(model, emulated)
    wanted = Wanted(
        model_fingerprint=model.fingerprint,
        machine_fingerprint=machine.fingerprint,
        engine_version=engine_version(),
        n_ctx=ctx,
        workload=chosen.name if chosen else None,
    )
    choice = choose(ProfileStore(), wanted)
    for remark in choice.remarks:
        note(remark)
    if choice.profile:
        config = _apply(choice.profile, machine)
    else:
        baseline = baseline_for(model, machine, fast_tier_name(machine, None, emulated), typical, n_ctx)
        note(f"no profile applies; running the baseline: {baseline.name}")
        note(f"to find a faster way: {_search_command(model_file, ctx, workload, emulate)}")
        config = baseline.config
    check_memory(model, machine, config, allow_overcommit=allow_overcommit)
    config = _guarded(config)
    with EngineRunner(model.path, emulated) as runner:
        if is_chat:
            if not model.has_chat_template:
                note("This model's file has no chat template.")
            talk(runner, config, _with_room(request, max_tokens, config.n_ctx), emulated=emulated is not None)
        elif json_:
            print_json(runner, config, request, describe(config, model.n_layers), emulated=emulated is not None)
        else:
            print_reply(runner, config, request, emulated=emulated is not None)


def _with_room(request: GenerationRequest, max_tokens: int | None, n_ctx: int) -> GenerationRequest:
    """The same with a limit that leaves a chat room for what was said."""
    wanted = max_tokens or int(n_ctx * _ANSWER_SHARE)
    return replace(request, max_tokens=min(wanted, int(n_ctx * _LONGEST_SHARE)))


def _guarded(config: EngineConfig) -> EngineConfig:
    """Text and machine are not quite those of the search: the cache goes off by itself where it does not pay."""
    return replace(config, cache=replace(config.cache, guard=True)) if config.cache is not None else config


def _search_command(model_file: Path, ctx: int | None, workload: str | None, emulate: str | None) -> str:
    command = ["moetune", "search", quote(str(model_file))]
    command += ["--workload", quote(workload)] if workload else []
    command += ["--ctx", str(ctx)] if ctx else []
    command += ["--emulate", quote(emulate)] if emulate else []
    return " ".join(command)


def _wants_chat(chat: bool | None, model: Model) -> bool:
    if chat and not model.has_chat_template:
        raise MoetuneError(
            "--chat needs a chat template, and this model's file has none.",
            "Leave --chat out, or use --raw and write the prompt the way the model was trained.",
            ExitCode.USAGE,
        )
    return model.has_chat_template if chat is None else chat


def _apply(profile: Profile, machine: Machine) -> EngineConfig:
    needed = [name for name in (profile.config.device, *profile.config.more_devices) if name is not None]
    gone = [name for name in needed if name not in [known.name for known in machine.devices]]
    if gone:
        raise MoetuneError(
            f"The profile runs on the device {gone[0]}, which is not there now.",
            "Bring the device back, or search again.",
            ExitCode.DEVICE,
        )
    emulated = f", emulated machine {profile.emulated}" if profile.emulated else ""
    note(f"profile: {profile.workload}, context {profile.n_ctx}, of {profile.created_at[:10]}{emulated}")
    note(wrapped(profile.verdict.sentence, indent=" " * 9))
    return profile.config
