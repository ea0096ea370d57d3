"""`moetune run`."""

import math
import sys
from dataclasses import replace
from typing import Annotated

import typer

from moetune.autotune.words import describe
from moetune.cli.baseline import check_memory
from moetune.cli.chat import chat as talk
from moetune.cli.configuration import configuration, wish
from moetune.cli.flags import Emulate, ModelFile, Overcommit, Verbose
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note
from moetune.cli.prompt import read_prompt
from moetune.cli.reply import print_json, print_reply
from moetune.engine.generation import GenerationRequest, Sampling
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError

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
    ] = Sampling.temperature,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampling, above temperature 0.")] = (Sampling.seed),
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
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    wished = wish(model, ctx, workload)
    is_chat = prompt is None and not json_ and sys.stdin.isatty() and sys.stdout.isatty()
    request = GenerationRequest(
        prompt="" if is_chat else read_prompt(prompt),
        max_tokens=max_tokens or _MAX_TOKENS,
        sampling=Sampling(temperature, seed=seed),
        chat=_wants_chat(chat, model),
    )
    machine = seen_machine(model, emulated)
    config = configuration(wished, model, machine, emulated)
    check_memory(model, machine, config, allow_overcommit=allow_overcommit)
    with EngineRunner(model.path, emulated, watched=True) as runner:
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


def _wants_chat(chat: bool | None, model: Model) -> bool:
    if chat and not model.has_chat_template:
        raise MoetuneError(
            "--chat needs a chat template, and this model's file has none.",
            "Leave --chat out, or use --raw and write the prompt the way the model was trained.",
            ExitCode.USAGE,
        )
    return model.has_chat_template if chat is None else chat
