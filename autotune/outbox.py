"""What was measured while the database was away, until it can be sent."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moetune.autotune.knobs import Choice
from moetune.autotune.record import TrialRecord


@dataclass(frozen=True)
class Unsent:
    """A finished trial with its point of the space, or one block of a side-by-side as JSON."""

    record: TrialRecord | None
    params: Mapping[str, Choice]
    block: str | None


_UNSENT = TypeAdapter(Unsent)


class Outbox:
    """One line of JSON an item, in a file of this machine; whoever holds the study's lock may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, item: Unsent) -> None:
        """Written durably before anybody is told that the database is gone."""
        with self.path.open("ab") as file:
            # The line before may have been torn.
            file.write(b"\n" + _UNSENT.dump_json(item) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def waiting(self) -> tuple[Unsent, ...]:
        """What is to be sent, oldest first; half a line, left by a crash, is none."""
        if not self.path.exists():
            return ()
        found = []
        for line in self.path.read_bytes().splitlines():
            try:
                found.append(_UNSENT.validate_json(line))
            except ValidationError:
                continue
        return tuple(found)

    def clear(self) -> None:
        """Everything was sent."""
        self.path.unlink(missing_ok=True)
