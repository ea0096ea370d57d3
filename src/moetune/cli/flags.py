"""Flags that several commands share, and the checks on their values that need no machine and no engine."""

import re
from pathlib import Path
from typing import Annotated

import typer

from moetune.cli.output import show_engine_log
from moetune.engine.config import KvType
from moetune.engine.emulator import PRESETS
from moetune.engine.model import Model
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import Workload

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file; of a split model any of its files.")]
Emulate = Annotated[
    str | None,
    typer.Option(
        "--emulate", metavar="SPEC", help=f"Use an emulated accelerator: {', '.join(PRESETS)}; 'desktop,vram_mib=48'."
    ),
]
Overcommit = Annotated[
    bool, typer.Option("--allow-overcommit", help="Go on if the model is larger than all memory, reading it from disk.")
]

Verbose = Annotated[
    bool, typer.Option("--verbose", callback=show_engine_log, help="Show what llama.cpp logs, on standard error.")
]

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="MOETUNE_STORAGE",
        help="A PostgreSQL database that identical machines share; default: a file of this machine.",
    ),
]

_LEAST_CTX = 64
_CTX_STEP = 1024
_DEFAULT_CTX = 4096


_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float:
    """Seconds of "90s", "10m" or "1.5h"; MoetuneError (USAGE) for anything else."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh])", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise MoetuneError(f"--budget {text!r} is no time.", "Use a number and a unit: 90s, 10m or 2h.", ExitCode.USAGE)
    return float(match[1]) * _UNIT_S[match[2]]


def context_for(n_ctx: int | None, model: Model, workload: Workload) -> int:
    """The context to use: the one asked for if it can be, else the least usual one that holds the workload."""
    longest = model.context_length or n_ctx or _DEFAULT_CTX
    if n_ctx is None:
        rounded = -(-workload.n_ctx_needed // _CTX_STEP) * _CTX_STEP
        n_ctx = min(max(_DEFAULT_CTX, rounded), longest)
    return check_context(n_ctx, model)


def check_context(n_ctx: int, model: Model) -> int:
    """The same number if it can be a context of this model; MoetuneError (USAGE) if not."""
    longest = model.context_length or n_ctx
    if not _LEAST_CTX <= n_ctx <= longest:
        raise MoetuneError(
            f"A context of {n_ctx} tokens is not possible; this model was made for up to {longest}.",
            f"Use --ctx with a number from {_LEAST_CTX} to {longest}.",
            ExitCode.USAGE,
        )
    return n_ctx


def kv_types(text: str) -> tuple[KvType, ...]:
    """The KV-cache types in a list such as "f16,q8_0", each once, in its order."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(KvType)]
    if unknown or not names:
        raise MoetuneError(
            f"--kv {text!r} does not name KV-cache types"
            + (f": there is no {unknown[0]!r}." if unknown else ": it is empty."),
            f"Use one or more of {', '.join(KvType)}, separated by commas.",
            ExitCode.USAGE,
        )
    return tuple(KvType(name) for name in dict.fromkeys(names))
