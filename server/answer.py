"""From the engine's events about one request to its HTTP response, as long as the client is there to read it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from moetune.engine.serving import Event, Finished, Piece, Refusal, Rejected
from moetune.server.errors import ApiError
from moetune.server.event_stream import EventStream
from moetune.server.metrics import Metrics
from moetune.server.replies import Reply, event

Events = AsyncGenerator[Event, None]
Result = TypeVar("Result")

_STATUS = {Refusal.TOO_LONG: 400, Refusal.BAD_PROMPT: 400, Refusal.ENGINE: 500}
_CODE = {Refusal.TOO_LONG: "context_length_exceeded", Refusal.BAD_PROMPT: None, Refusal.ENGINE: "engine_failed"}


async def answer_whole(request: Request, events: Events, reply: Reply, metrics: Metrics) -> Response:
    """All of the text at once. Raises ApiError for what the engine refuses, ClientDisconnect when nobody waits."""
    async with aclosing(events):
        return await _unless_gone(request, _whole(_timed(events, metrics), reply))


async def answer_stream(request: Request, events: Events, reply: Reply, metrics: Metrics) -> Response:
    """Text as it comes. Raises as `answer_whole` for what is refused before the first text."""
    try:
        _raise_refusal(await _unless_gone(request, _first(events)))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(_pieces(events, reply, metrics))


async def _first(events: Events) -> Event:
    return await anext(events)


async def _whole(events: AsyncIterator[Event], reply: Reply) -> Response:
    text = ""
    async for said in events:
        _raise_refusal(said)
        if isinstance(said, Piece):
            text += said.text
        elif isinstance(said, Finished):
            return JSONResponse(reply.whole(text, said))
    raise RuntimeError("the engine's events ended without an end")


async def _pieces(events: Events, reply: Reply, metrics: Metrics) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        if (opening := reply.opening()) is not None:
            yield opening
        async for said in _timed(events, metrics):
            if isinstance(said, Piece):
                yield reply.piece(said.text)
                await asyncio.sleep(0)  # pieces that wait already must not keep the loop from seeing the client leave
            elif isinstance(said, Finished):
                yield reply.ending(said)
            elif isinstance(said, Rejected):
                yield event(_refusal(said).body())


async def _timed(events: Events, metrics: Metrics) -> AsyncIterator[Event]:
    """The same events; how long the first text and the end took is noted."""
    start, is_first = time.monotonic(), True
    async for said in events:
        if is_first and isinstance(said, Piece):
            metrics.first_text_s.observe(time.monotonic() - start)
            is_first = False
        elif isinstance(said, Finished):
            metrics.request_s.observe(time.monotonic() - start)
        yield said


def _refusal(rejected: Rejected) -> ApiError:
    detail = rejected.detail[:1].upper() + rejected.detail[1:] + "."
    return ApiError(_STATUS[rejected.refusal], detail, _CODE[rejected.refusal])


def _raise_refusal(said: Event) -> None:
    if isinstance(said, Rejected):
        raise _refusal(said)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves first: then ClientDisconnect."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
