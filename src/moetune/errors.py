"""The one error type that reaches the user, and the exit codes it carries."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns; the table in docs/commands.md lists these and no others."""

    OK = 0
    BUG = 1
    USAGE = 2
    MODEL = 3
    DEVICE = 4
    MEMORY = 5
    ENGINE = 6
    STORAGE = 7
    BUSY = 8
    UNPROVEN = 9
    INTERRUPTED = 130


class MoetuneError(Exception):
    """A failure the user can act on: a cause, a remedy, and the exit code.

    Caught once, in ``moetune.__main__``. Anything else that escapes is a bug and keeps its traceback.
    """

    def __init__(self, cause: str, remedy: str, code: ExitCode) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy
        self.code = code
