"""`moetune serve`."""

from dataclasses import replace
from typing import Annotated

import typer

from moetune.cli.address import Address, listen, resolve
from moetune.cli.baseline import check_memory, has_room
from moetune.cli.configuration import configuration, wish
from moetune.cli.extras import require
from moetune.cli.flags import Emulate, ModelFile, Overcommit, Verbose
from moetune.cli.machine import emulated_machine, seen_machine
from moetune.cli.output import note, wrapped
from moetune.cli.progress import waiting
from moetune.engine.config import EngineConfig
from moetune.engine.model import Model, read_model
from moetune.engine.runner import EngineRunner
from moetune.errors import ExitCode, MoetuneError
from moetune.hardware.machine import Machine

_MIB = 1 << 20
_MAX_PARALLEL = 64
_USUAL_PARALLEL = 4
_LEAST_KEY = 8
# Besides those that run or wait, for health, metrics and keep-alive.
_SPARE_CONNECTIONS = 64


def serve(
    model_file: ModelFile,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond this computer only with a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="MOETUNE_API_KEY", show_envvar=False, help="What clients must send."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            min=1,
            max=_MAX_PARALLEL,
            help="Requests at once; default: 4, fewer where memory is short.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=0, max=10_000, help="Requests that may wait besides.")] = 32,
    max_body: Annotated[float, typer.Option("--max-body", metavar="MIB", help="Largest request, in MiB.")] = 1.0,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name for clients; default: its file's.")
    ] = None,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Use the profile for this context, in tokens.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Use the profile for this workload: a preset's name or a file.")
    ] = None,
    emulate: Emulate = None,
    allow_overcommit: Overcommit = False,
    verbose: Verbose = False,
) -> None:
    """Serve the model to OpenAI's clients over HTTP, with the profile that `moetune search` saved for it.

    Several requests run at once, each with the profile's whole context. Prometheus finds /metrics, others /health.

    \b
    moetune serve model.gguf
    moetune serve model.gguf --parallel 8 --queue 100 --port 9000
    MOETUNE_API_KEY=... moetune serve model.gguf --host 0.0.0.0
    """
    require("The server", "serve", "starlette", "uvicorn", "prometheus_client")
    if not 0 < max_body <= 1024:
        raise MoetuneError(f"--max-body {max_body:g} is not possible.", "Use up to 1024 MiB.", ExitCode.USAGE)
    address = resolve(host, port)
    _check_key(api_key, address)
    emulated = emulated_machine(emulate)
    model = read_model(model_file)
    wished = wish(model, ctx, workload)
    with listen(address) as socket:
        machine = seen_machine(model, emulated)
        config = configuration(wished, model, machine, emulated)
        n_sequences = parallel or _at_once(model, machine, config)
        check_memory(model, machine, _with_sequences(config, n_sequences), allow_overcommit=allow_overcommit)

        # Not everyone who installed moetune has what these need.
        from moetune.server.app import serve_on
        from moetune.server.backend import Backend
        from moetune.server.settings import ServerSettings

        settings = ServerSettings(
            model=name or model.path.stem,
            created=int(model.path.stat().st_mtime),
            body_bytes=int(max_body * _MIB),
            connections=n_sequences + queue + _SPARE_CONNECTIONS,
            api_key=api_key,
            host_names=None if api_key is not None else address.own_names,
            emulated=emulated is not None,
        )
        with EngineRunner(model.path, emulated, watched=True) as runner:
            backend = Backend(runner, config, n_sequences, queue)
            with waiting("loading the model"):
                backend.start()
            requests = "request" if n_sequences == 1 else "requests"
            room = f"{n_sequences} {requests} at once, {backend.n_ctx:,} tokens each, {queue} may wait"
            note(wrapped(f"{settings.model}: {room}"))
            url = address.url(socket)
            note(wrapped(f"listening on {url}/v1 (OpenAI's API), …/metrics; Ctrl-C ends"))
            serve_on(socket, backend, settings)


def _with_sequences(config: EngineConfig, n_sequences: int) -> EngineConfig:
    """As far as memory goes: a context for each."""
    return replace(config, n_ctx=config.n_ctx * n_sequences)


def _at_once(model: Model, machine: Machine, config: EngineConfig) -> int:
    several = range(_USUAL_PARALLEL, 1, -1)
    return next((n for n in several if has_room(model, machine, _with_sequences(config, n))), 1)


def _check_key(key: str | None, address: Address) -> None:
    if key is None and not address.is_private:
        raise MoetuneError(
            f"On {address.host} others can reach the server, and no API key is set.",
            "Set MOETUNE_API_KEY, or give --api-key; or listen on 127.0.0.1.",
            ExitCode.USAGE,
        )
    if key is not None and not (len(key) >= _LEAST_KEY and key.isascii() and key.isprintable() and " " not in key):
        raise MoetuneError(
            "The API key cannot be used.",
            f"Use {_LEAST_KEY} or more letters, digits and signs of ASCII, without spaces; for example from "
            "`openssl rand -hex 16`.",
            ExitCode.USAGE,
        )
