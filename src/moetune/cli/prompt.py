"""The prompt: from the flag, or from standard input when something is piped into it."""

import sys

from moetune.errors import ExitCode, MoetuneError

_MAX_BYTES = 16 << 20


def read_prompt(flag: str | None) -> str:
    """The text to answer; raises `MoetuneError` (USAGE) when there is none or it is not text."""
    # What is no UTF-8 on the command line reaches Python as lone surrogates, which cannot be passed on.
    prompt = _piped() if flag is None else flag.encode(errors="surrogateescape").decode(errors="replace")
    if not prompt.strip():
        raise MoetuneError(
            "The prompt is empty.", 'Give one with -p "...", or pipe text into the command.', ExitCode.USAGE
        )
    return prompt


def _piped() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise MoetuneError(
            "There is no prompt.", 'Give one with -p "...", or pipe text into the command.', ExitCode.USAGE
        )
    raw = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise MoetuneError(
            f"Standard input holds more than {_MAX_BYTES >> 20} MiB.",
            "Pipe a shorter text; no model's context holds so much.",
            ExitCode.USAGE,
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MoetuneError(
            f"Standard input is not UTF-8 text (byte {error.start}).",
            "Convert it first, for example with iconv.",
            ExitCode.USAGE,
        ) from error
