"""What a command left behind, and what a good complaint looks like."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    def complains(self, code: int, *words: str) -> None:
        """One message: a cause, a remedy, nothing else, and nothing on standard output."""
        assert (self.code, self.out) == (code, "")
        cause, *remedy = [line for line in self.err.splitlines() if not line.startswith("load_backend:")]
        assert cause.startswith("error: ")
        assert remedy
        assert all(line.startswith("  ") for line in remedy)
        assert "Traceback" not in self.err
        assert [word for word in words if word not in self.err] == []


Command = Callable[..., Outcome]
