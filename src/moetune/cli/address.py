"""Where a server listens, and whether only this computer can reach it."""

import ipaddress
import socket
from dataclasses import dataclass

from moetune.errors import ExitCode, MoetuneError


@dataclass(frozen=True)
class Address:
    """host: as typed; ip and family: what it means."""

    host: str
    ip: str
    family: socket.AddressFamily
    port: int

    @property
    def is_private(self) -> bool:
        """Whether only this computer can reach it."""
        return ipaddress.ip_address(self.ip).is_loopback

    @property
    def own_names(self) -> tuple[str, ...]:
        """What this computer may be called in a URL of this address."""
        return (self.host.lower(), self.ip, "localhost", "127.0.0.1", "::1")

    def url(self, listening: socket.socket) -> str:
        """The beginning of its URLs."""
        host = f"[{self.ip}]" if self.family == socket.AF_INET6 else self.ip
        return f"http://{host}:{listening.getsockname()[1]}"


def resolve(host: str, port: int) -> Address:
    """Raises MoetuneError (USAGE) for a host that is none of this computer's."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise MoetuneError(
            f"--host {host!r} is no address: {error}",
            "Use an address of this computer, such as 127.0.0.1.",
            ExitCode.USAGE,
        ) from error
    return Address(host, str(where[0]), family, port)


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises MoetuneError (USAGE) when the address is taken or is another computer's."""
    try:
        return socket.create_server((address.ip, address.port), family=address.family, backlog=128)
    except OSError as error:
        raise MoetuneError(
            f"Cannot listen on {address.host}, port {address.port}: {error.strerror}.",
            "Use another --port, or --port 0 for any free one.",
            ExitCode.USAGE,
        ) from error
