"""`moetune run`."""

import math
from typing import Annotated

import typer

from moetune.cli.baseline import check_memory
from moetune.cli.configuration import configuration, wish
from moetune.cli.flags import Emulate, ModelFile, Overcommit
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note, stream
from moetune.cli.prompt import read_prompt
from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

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
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    wished = wish(model, ctx, workload)
    request = GenerationRequest(
        prompt=read_prompt(prompt),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        chat=_wants_chat(chat, model),
    )
    machine = seen_machine(model, emulated)
    config = configuration(wished, model, machine, emulated)
    check_memory(model, machine, config, allow_overcommit=allow_overcommit)
    with EngineRunner(model.path, emulated) as runner:
        _answer(runner, config, request, emulated=emulated is not None)


def _wants_chat(chat: bool | None, model: Model) -> bool:
    if chat and not model.has_chat_template:
        raise MoetuneError(
            "--chat needs a chat template, and this model's file has none.",
            "Leave --chat out, or use --raw and write the prompt the way the model was trained.",
            ExitCode.USAGE,
        )
    return model.has_chat_template if chat is None else chat


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
