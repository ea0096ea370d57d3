"""`moetune run`."""

import math
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from moetune.cli.baseline import baseline_for, check_memory
from moetune.cli.flags import Emulate, ModelFile, Overcommit, context_for
from moetune.cli.machine import emulated_machine, fast_tier_name, seen_machine
from moetune.cli.output import note, stream, wrapped
from moetune.cli.prompt import read_prompt
from moetune.cli.selection import Wanted, choose
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats
from moetune.engine.library import engine_version
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.engine.watching import allow_watching
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore
from moetune.profiles.workload import PRESETS, load_workload

# A generation ends by itself at --max-tokens; this only frees the terminal from an engine that hangs.
_TIME_LIMIT_S = 24 * 3600.0
_MAX_TEMPERATURE = 10.0


def run(
    model_file: ModelFile,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What to answer; without it, standard input is read.")
    ] = None,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Use the profile for this context, in tokens.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Use the profile for this workload: a preset's name or a file.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Stop after so many tokens.")] = 256,
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
    emulate: Emulate = None,
    allow_overcommit: Overcommit = False,
) -> None:
    """Run the model with the profile that `moetune search` saved for it, and stream its text to standard output.

    Which profile was applied, the speeds and the hit rate go to standard error. Without a profile the stock
    configuration runs, and the search that would make one is named.

    \b
    moetune run model.gguf -p "Why is the sky blue?"
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
    request = GenerationRequest(
        prompt=read_prompt(prompt),
        max_tokens=max_tokens,
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
    allow_watching()
    with EngineRunner(model.path, emulated) as runner:
        _answer(runner, _guarded(config), request, emulated=emulated is not None)


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


def _answer(runner: EngineRunner, config: EngineConfig, request: GenerationRequest, *, emulated: bool) -> None:
    in_line = False
    try:
        for item in runner.generate(config, request, time_limit_s=_TIME_LIMIT_S):
            if isinstance(item, GenerationStats):
                stats = item
            elif item.text:
                stream(item.text)
                in_line = not item.text.endswith("\n")
    finally:
        # Also after Ctrl-C: the shell's prompt begins on a line of its own.
        if in_line:
            stream("\n")
    note(_figures(stats, emulated=emulated))


def _figures(stats: GenerationStats, *, emulated: bool) -> str:
    parts = [f"prompt {_speed(stats.n_prompt, stats.prompt_s)}", f"reply {_speed(stats.n_reply, stats.reply_s)}"]
    hit_rate = stats.counters.hit_rate if stats.counters else None
    if hit_rate is not None:
        parts.append(f"hit rate {hit_rate:.0%}")
    if stats.counters is not None and stats.counters.layers_off:
        parts.append(f"the cache did not pay in {stats.counters.layers_off} layers and is off there")
    if stats.stopped == "limit":
        parts.append("stopped at the limit of tokens")
    return "; ".join(parts) + (" (emulated)" if emulated else "")


def _speed(tokens: int, seconds: float) -> str:
    rate = f" ({tokens / seconds:.1f} tok/s)" if seconds > 0 else ""
    return f"{tokens} tokens in {seconds:.2f} s{rate}"
