"""The routes: OpenAI's, health and metrics."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from moetune.server.answer import answer_stream, answer_whole
from moetune.server.backend import Backend
from moetune.server.body import read_body
from moetune.server.errors import ApiError
from moetune.server.guard import Guard
from moetune.server.metrics import CountRequests, Metrics
from moetune.server.replies import Reply
from moetune.server.requests import ChatRequest, CompletionRequest, parse
from moetune.server.settings import ServerSettings

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_GRACE_S = 5
_LONGEST_NAME = 100
_CLIENT_GONE = 499  # as nginx calls it; nobody is there to read it


def build_app(backend: Backend, settings: ServerSettings) -> Starlette:
    """The whole server; it listens to the backend from its start on, and ends the backend when it stops."""
    metrics = Metrics(backend)
    api = Api(backend, settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        backend.attach(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(backend.close)

    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(CountRequests, metrics=metrics), Middleware(Guard, settings=settings)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _left, 500: _bug},
        lifespan=lifespan,
    )


def serve_on(listening: socket.socket, backend: Backend, settings: ServerSettings) -> None:
    """Serve until Ctrl-C or SIGTERM, which it passes on; what is still being answered then has a few seconds."""
    # A shell's background jobs inherit an ignored Ctrl-C. uvicorn hears it all the same, and raises it in the end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = uvicorn.Config(
        build_app(backend, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http="h11",  # whatever else is installed: its limits on headers are known
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listening])


class Api:
    """A method a route."""

    def __init__(self, backend: Backend, settings: ServerSettings, metrics: Metrics) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics

    async def health(self, _: Request) -> Response:
        """200 while requests are taken, else 503."""
        up = self._backend.up
        return JSONResponse({"status": "ok" if up else "engine unavailable"}, 200 if up else 503)

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type=_PROMETHEUS)

    async def models(self, _: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """The same, asked for by its name."""
        self._require_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """Raw text, continued."""
        body = parse(CompletionRequest, await read_body(request, self._settings.body_bytes))
        return await self._answer(request, body, chat=False)

    async def chat(self, request: Request) -> Response:
        """A conversation, continued by way of the model's own chat template."""
        body = parse(ChatRequest, await read_body(request, self._settings.body_bytes))
        return await self._answer(request, body, chat=True)

    async def _answer(self, request: Request, body: CompletionRequest | ChatRequest, *, chat: bool) -> Response:
        self._require_model(body.model)
        answer = answer_stream if body.stream else answer_whole
        reply = Reply(body.model, chat, body.usage_wanted)
        return await answer(request, self._backend.events(body.sequence), reply, self._metrics)

    def _card(self) -> dict[str, object]:
        settings = self._settings
        head = {"id": settings.model, "object": "model", "created": settings.created, "owned_by": "moetune"}
        return {**head, "context_length": self._backend.n_ctx, "emulated": settings.emulated}

    def _require_model(self, name: str) -> None:
        if name != self._settings.model:
            message = (
                f"The model '{name[:_LONGEST_NAME]}' is not served here; this server has '{self._settings.model}'."
            )
            raise ApiError(404, message, "model_not_found", "model")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  (as registered above)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    # What is allowed instead is in a header.
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response()


async def _left(_: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _bug(_: Request, _error: Exception) -> Response:
    """The server logs its traceback; the client need not see it."""
    return ApiError(500, "The server failed; its log says how.", "server_bug").response()
