"""Failures in the shape that OpenAI's API gives them."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse


@dataclass(eq=False)  # exceptions are compared by identity
class ApiError(Exception):
    """A request that gets no answer. status: of HTTP; code and param as OpenAI uses them; headers: HTTP's, besides."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] | None = None

    def body(self) -> dict[str, object]:
        """The JSON object that stands for it, also in a stream."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers={**_HEADERS.get(self.status, {}), **(self.headers or {})})


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
