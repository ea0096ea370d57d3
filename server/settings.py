"""What the server is told when it starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """model: the name that clients use; created: seconds since 1970. body_bytes: the most of one request;
    connections: the most at a time.

    api_key: None only where nobody else can reach the server. host_names: what it may be called in URLs; None for any.
    """

    model: str
    created: int
    body_bytes: int
    connections: int
    api_key: str | None = None
    host_names: tuple[str, ...] | None = None
    emulated: bool = False
