"""Quality figures that were measured before: one JSON file for each pair of KV types on each model and text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from moetune.autotune.quality import QualityFigures
from moetune.engine.config import KvType
from moetune.profiles.store import write_file

_MAX_FILE_BYTES = 64 << 10
_MOST_FILES = 10_000


@dataclass(frozen=True)
class QualityKey:
    """All that figures depend on. device: who computes, None for the CPU; text: the digest of what was scored."""

    model_fingerprint: str
    engine_version: str
    device: str | None
    type_k: KvType
    type_v: KvType
    text: str


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class _Remembered:
    key: QualityKey
    figures: QualityFigures


_REMEMBERED = TypeAdapter(_Remembered)


class QualityStore:
    """Files in one folder. What cannot be used is as good as absent: it is measured again and written over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, key: QualityKey) -> Path:
        """The file of these figures."""
        return self._folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.json"

    def find(self, key: QualityKey) -> QualityFigures | None:
        """The figures remembered for exactly this key."""
        found = _read(self.path_of(key))
        return found.figures if found is not None and found.key == key else None

    def of_model(self, model_fingerprint: str, engine_version: str) -> list[tuple[QualityKey, QualityFigures]]:
        """Everything remembered of a model under one engine, whatever text and device it was measured on."""
        found = []
        for path in sorted(self._folder.glob("*.json"))[:_MOST_FILES]:
            remembered = _read(path)
            if remembered is not None:
                key = remembered.key
                if (key.model_fingerprint, key.engine_version) == (model_fingerprint, engine_version):
                    found.append((key, remembered.figures))
        return found

    def keep(self, key: QualityKey, figures: QualityFigures) -> None:
        """Write them in one step. Raises MoetuneError (STORAGE)."""
        write_file(self.path_of(key), _REMEMBERED.dump_json(_Remembered(key, figures), indent=1))


def _read(path: Path) -> _Remembered | None:
    try:
        with path.open("rb") as file:
            return _REMEMBERED.validate_json(file.read(_MAX_FILE_BYTES))
    except (OSError, ValidationError):
        return None
