"""The texts that routing is recorded on: the user's files, each a workload of its own, and workloads by name."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moetune.cli.output import printable
from moetune.engine.routing_file import MAX_NAME_BYTES, MAX_WORKLOADS
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import load_workload

# A file is read only as far as its tokens can be wanted. Tokens of ordinary text have about four bytes.
_BYTES_A_TOKEN = 64

# Far more than is ever scored, and soon tokenised.
_MOST_QUALITY_BYTES = 4 << 20


@dataclass(frozen=True)
class NamedText:
    """One workload's text, in pieces that are tokenised apart."""

    name: str
    texts: tuple[str, ...]


def read_texts(files: Sequence[str], workloads: Sequence[str], most_tokens: int) -> tuple[NamedText, ...]:
    """Every `--text` and `--workload`, in that order. Raises MoetuneError (USAGE) for what is no text or named twice.

    A file is given as FILE, and named by its stem, or as NAME=FILE.
    """
    named = [_read_file(given, most_tokens) for given in files]
    named += [NamedText(chosen.name, chosen.texts) for chosen in map(load_workload, workloads)]
    names = [text.name for text in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MoetuneError(
            f"Two texts are called {twice!r}.", "Give one a name of its own: --text other=FILE.", ExitCode.USAGE
        )
    if len(names) > MAX_WORKLOADS:
        raise MoetuneError(f"{len(names)} texts are too many.", f"Give at most {MAX_WORKLOADS}.", ExitCode.USAGE)
    return tuple(named)


def read_quality_text(path: Path) -> str:
    """The file's text. Raises MoetuneError (USAGE) for what is no text, empty or too large."""
    text = _read(str(path), _MOST_QUALITY_BYTES + 4)  # a character cut in two at the end is left out
    if len(text.encode()) > _MOST_QUALITY_BYTES:
        raise MoetuneError(
            f"The text {path} is larger than {_MOST_QUALITY_BYTES >> 20} MiB.",
            "Give a part of it; some ten thousand words are enough.",
            ExitCode.USAGE,
        )
    if "\0" in text:
        raise MoetuneError(f"{path} is not a text: it has zero bytes.", "Give a text file in UTF-8.", ExitCode.USAGE)
    if not text.strip():
        raise MoetuneError(f"The text {path} is empty.", "Give a file with some pages of text.", ExitCode.USAGE)
    return text


def _read_file(given: str, most_tokens: int) -> NamedText:
    name, path = _split(given)
    if not name.strip() or len(name.encode()) > MAX_NAME_BYTES:
        raise MoetuneError(f"--text {given[:60]!r} gives its text no usable name.", "Write NAME=FILE.", ExitCode.USAGE)
    text = _read(path, most_tokens * _BYTES_A_TOKEN)
    if not text.strip():
        raise MoetuneError(f"The text {path} is empty.", "Give a file with some pages of text.", ExitCode.USAGE)
    return NamedText(name, (text,))


def _split(given: str) -> tuple[str, str]:
    """The workload's name and the file's path. A file whose own name has an equals sign is found too."""
    name, equals, path = given.partition("=")
    try:
        is_whole = not equals or Path(given).exists()
    except OSError:  # longer than any file's name
        is_whole = False
    return (printable(Path(given).stem), given) if is_whole else (printable(name), path)


def _read(path: str, most_bytes: int) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            raw = file.read(most_bytes)
        # The limit may fall into the middle of a character; the file's own end may not.
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) < most_bytes)
    except UnicodeDecodeError as error:
        raise MoetuneError(
            f"{path} is not UTF-8 text (byte {error.start:,}).",
            "Give a text file, or convert it first, for example with iconv.",
            ExitCode.USAGE,
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # the latter two for the home of nobody (~nobody), zero bytes
        raise MoetuneError(
            f"The text {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Check the path and who may read it.",
            ExitCode.USAGE,
        ) from error
