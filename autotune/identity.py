"""What a study is about: measurements of different identities are never put together."""

import hashlib
from dataclasses import astuple, dataclass, replace
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from moetune.autotune.request import SearchRequest
from moetune.autotune.space import Space
from moetune.autotune.words import one_line
from moetune.engine.model import Model
from moetune.hardware.machine import Machine
from moetune.profiles.schema import Key, Line
from moetune.profiles.workload import Name


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class StudyIdentity:
    """model, machine: fingerprints; identical machines share the latter. engine: version of the plugin and llama.cpp.

    workload_digest: changes with the workload's text and numbers. device: ggml name of the fast tier, or "cpu".
    space: digest of the knobs and their choices.
    """

    model: Key
    model_name: Line
    n_layers: Annotated[int, Field(ge=0, le=1 << 16)]
    machine: Key
    machine_label: Line
    engine: Key
    n_ctx: Annotated[int, Field(ge=1, le=1 << 24)]
    workload: Name
    workload_digest: Key
    device: Key
    space: Key

    @property
    def key(self) -> str:
        """The study's name: 24 hex digits, the same for the same identity whatever model and machine are called."""
        named = astuple(replace(self, model_name="", machine_label="", n_layers=0))
        return hashlib.sha256("\0".join(map(str, named)).encode()).hexdigest()[:24]

    def same_search(self, other: "StudyIdentity") -> bool:
        """Whether both ask the same question, machine and engine aside."""
        return all(getattr(self, name) == getattr(other, name) for name in ("model", "n_ctx", "workload_digest"))

    def teaches(self, other: "StudyIdentity") -> bool:
        """Whether what was best here is worth trying there: one model, machine and engine, but another study."""
        alike = all(getattr(self, name) == getattr(other, name) for name in ("model", "machine", "engine"))
        return alike and self.key != other.key


IDENTITY = TypeAdapter(StudyIdentity)


def identity_of(request: SearchRequest, machine: Machine, model: Model, space: Space) -> StudyIdentity:
    """The study that this search belongs to."""
    return StudyIdentity(
        model=model.fingerprint,
        model_name=one_line(model.name),
        n_layers=model.n_layers,
        machine=machine.kind_fingerprint,
        machine_label=one_line(machine.label),
        engine=request.engine_version,
        n_ctx=request.n_ctx,
        workload=request.workload.name,
        workload_digest=hashlib.sha256(repr(request.workload).encode()).hexdigest()[:16],
        device=space.default.device or "cpu",
        space=space.digest,
    )
