"""A request's body, within its limits."""

import asyncio

from starlette.requests import Request

from moetune.server.errors import ApiError

_ARRIVAL_S = 30.0


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The whole of it. Raises ApiError(408, 413, 415) for one that is too slow, too large or no JSON."""
    # Browsers send other types to other sites without asking these first.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send JSON, with the header Content-Type: application/json.", "unsupported_media_type")
    too_large = ApiError(413, f"The request is larger than {most_bytes:,} bytes.", "request_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_ARRIVAL_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, f"The request did not arrive within {_ARRIVAL_S:g} s.", "request_timeout") from error
    return bytes(body)
