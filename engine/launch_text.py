"""A start of llama-server as text: a shell command, a systemd unit, an environment file, plain data."""

import re
from collections.abc import Iterator, Sequence
from shlex import quote
from textwrap import wrap
from typing import Any

from moetune.engine.server_launch import ServerLaunch
from moetune.errors import ExitCode, MoetuneError

_WIDTH = 80
_PLAIN = re.compile(r"[A-Za-z0-9@=:,./_+-]+")


def as_command(launch: ServerLaunch) -> str:
    """For any POSIX shell: `env` with the variables, the program, its flags; folded at 80 columns."""
    variables = [quote(f"{name}={value}") for name, value in launch.environment]
    flags = [" ".join(quote(word) for word in (s.flag, s.value) if word is not None) for s in launch.settings]
    return " \\\n".join(_folded([*(["env", *variables] if variables else []), quote(launch.program), *flags])) + "\n"


def as_environment_file(launch: ServerLaunch, remarks: Sequence[str] = ()) -> str:
    """For `EnvironmentFile=` and for `set -a; . FILE`, which read single quotes alike; remarks as comments.

    What llama-server has no variable for is a remark too.
    """
    missing = [f"not in here, add to the command: {s.flag} {s.value or ''}".rstrip() for s in launch.only_flags]
    lines = [*_comments([*remarks, *missing]), *(f"{name}={quote(value)}" for name, value in launch.variables)]
    return "\n".join(lines) + "\n"


def as_systemd_unit(launch: ServerLaunch, description: str, remarks: Sequence[str] = ()) -> str:
    """A service, for `systemctl --user` or the system. The colon before the program keeps `$` as it is.

    Raises MoetuneError (USAGE) for a program that systemd refuses to start.
    """
    if any(c in "\"'\\" or not c.isprintable() for c in launch.program):
        raise MoetuneError(
            f"systemd starts no program with quotes or backslashes in its path: {launch.program}.",
            "Name a link to it that has none: --server PROGRAM.",
            ExitCode.USAGE,
        )
    locks = any(s.flag == "-lm" and "mlock" in (s.value or "") for s in launch.settings)
    lines = [
        *_comments(remarks),
        "[Unit]",
        f"Description={_one_line(description).replace('%', '%%')}",
        "",
        "[Service]",
        *(f"Environment={_systemd_word(f'{name}={value}')}" for name, value in launch.environment),
        f"ExecStart={' '.join(map(_systemd_word, (f':{launch.program}', *launch.arguments)))}",
        "Restart=on-failure",
        *(["LimitMEMLOCK=infinity"] if locks else []),
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def as_data(launch: ServerLaunch) -> dict[str, Any]:
    """Plain values, for JSON and YAML."""
    return {
        "program": launch.program,
        "arguments": list(launch.arguments),
        "environment": dict(launch.environment),
        "lost": {lost.field: lost.value for lost in launch.lost},
        "link": None if launch.link is None else str(launch.link),
    }


def _folded(words: list[str]) -> Iterator[str]:
    """Lines of whole words; all but the first are indented."""
    line = words[0]
    for word in words[1:]:
        if len(line) + len(word) + 3 > _WIDTH:
            yield line
            line = "  " + word
        else:
            line += " " + word
    yield line


def _systemd_word(text: str) -> str:
    """One word of a unit's line: % and \\ doubled, quotes escaped, control characters by their codes."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'


def _comments(remarks: Sequence[str]) -> list[str]:
    return [_one_line(f"# {line}") for remark in remarks for line in wrap(remark, _WIDTH - 2, break_on_hyphens=False)]


def _one_line(text: str) -> str:
    """A backslash at its end would take the next line in."""
    return "".join(c if c.isprintable() else " " for c in text).rstrip("\\ ")
