"""Who may ask at all: checked before a request's body is read."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from moetune.server.errors import ApiError
from moetune.server.settings import ServerSettings

_OPEN_PATHS = ("/health",)


class Guard:
    """Asks for the key; without one, only for host names that are this computer's.

    The latter keeps out web pages that let their own name point to this computer, to read answers in the browser.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._key = settings.api_key.encode() if settings.api_key is not None else None
        self._hosts = settings.host_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refused = self._wrong_host(headers) or (scope["path"] not in _OPEN_PATHS and self._wrong_key(headers))
            if refused:
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _wrong_host(self, headers: Headers) -> ApiError | None:
        name = headers.get("host", "").rsplit("@", 1)[-1].lower()
        name = name.split("]")[0].removeprefix("[") if name.startswith("[") else name.split(":")[0]
        if self._hosts is None or name in self._hosts:
            return None
        return ApiError(403, f"This server does not answer to the name '{name}'.", "unknown_host")

    def _wrong_key(self, headers: Headers) -> ApiError | None:
        if self._key is None:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        return ApiError(401, "Give the server's API key: Authorization: Bearer KEY.", "invalid_api_key")
