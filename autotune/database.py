"""Where several identical machines keep one study together: a PostgreSQL database, as the user names it."""

from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from moetune.errors import ExitCode, MoetuneError

_SCHEMES = ("postgresql", "postgres")
_EXAMPLE = "Use --storage postgresql://user:password@host/database"


@dataclass(frozen=True)
class Database:
    """A database and how workers on it know of one another.

    url: may hold a password, so it is never shown; `shown` is. heartbeat_s: between two signs of life of a running
    trial; grace_s: silence after which its worker is taken for dead. patience_s: how long a search that is under way
    waits for a database that has gone away.
    """

    url: str = field(repr=False)
    shown: str
    heartbeat_s: int = 15
    grace_s: int = 60
    patience_s: float = 60.0

    def hide(self, text: str) -> str:
        """`text` without the password, should a server or a driver repeat it."""
        parts = urlsplit(self.url)
        secrets = [parts.password or "", *parse_qs(parts.query).get("password", [])]
        for word in {word for secret in secrets for word in (secret, unquote(secret)) if word}:
            text = text.replace(word, "***")
        return text


def parse_database(url: str) -> Database:
    """The database that a `--storage` names; nothing is connected to. MoetuneError (USAGE) for anything else."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _unclear() from None
    if parts.scheme not in _SCHEMES:
        # Only the scheme is repeated: what follows may be a password.
        given = f", not {parts.scheme}" if parts.scheme.isalnum() else " as a URL"
        raise MoetuneError(
            f"--storage takes a PostgreSQL database{given}.",
            f"{_EXAMPLE}. Without it the study is a file of this machine.",
            ExitCode.USAGE,
        )
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _unclear()
    if len(parts.path) < 2:
        raise MoetuneError("--storage names no database.", f"{_EXAMPLE}.", ExitCode.USAGE)
    return Database("postgresql+psycopg" + url[len(parts.scheme) :], _shown(parts, port))


def _shown(parts: SplitResult, port: int | None) -> str:
    user = f"{parts.username}@" if parts.username else ""
    place = f"{parts.hostname or ''}{f':{port}' if port else ''}"
    return f"postgresql://{user}{place}{parts.path}"


def _unclear() -> MoetuneError:
    return MoetuneError(
        "--storage is not a URL that can be understood.",
        f"{_EXAMPLE}; in the password write / as %2F, @ as %40, # as %23, ? as %3F and % as %25.",
        ExitCode.USAGE,
    )
