"""Who is at what: every running trial carries its claim, so that no two workers measure the same."""

import hashlib
import os
import socket
from dataclasses import dataclass, replace
from enum import StrEnum
from secrets import token_hex
from typing import Annotated

from optuna.trial import FrozenTrial, Trial
from pydantic import StringConstraints, TypeAdapter, ValidationError

from moetune.autotune.record import Origin, TrialRecord
from moetune.engine.config import EngineConfig
from moetune.profiles.schema import Key, Line

ATTRIBUTE = "claim"
_CONFIG = TypeAdapter(EngineConfig)


class Purpose(StrEnum):
    """TRIAL: one configuration is measured. TURN: a part of the search that one worker does for all."""

    TRIAL = "trial"
    TURN = "turn"


@dataclass(frozen=True)
class Claim:
    """worker: machine and process. what: the configuration's digest or the turn's name, "" until it is known."""

    worker: Line
    purpose: Purpose
    origin: Origin
    what: Annotated[str, StringConstraints(max_length=128)]

    @property
    def comes_round(self) -> bool:
        """Whether nobody has to be handed it: baselines and further looks are taken up where they are missed."""
        return self.origin in (Origin.BASELINE, Origin.LOOK)

    @property
    def dump(self) -> str:
        return _CLAIM.dump_json(self).decode()


_CLAIM = TypeAdapter(Claim)


def claim_of(trial: FrozenTrial | Trial) -> Claim | None:
    """None where there is none, or none that can be read."""
    try:
        return _CLAIM.validate_json(trial.user_attrs[ATTRIBUTE])
    except (KeyError, ValidationError):
        return None


def digest_of(config: EngineConfig) -> Key:
    """The same for equal configurations, wherever a machine keeps the recorded routing."""
    if config.cache is not None and config.cache.routing is not None:
        config = replace(config, cache=replace(config.cache, routing=""))
    return hashlib.sha256(_CONFIG.dump_json(config)).hexdigest()[:24]


def this_worker() -> str:
    """Host and process, for people; containers may share both, so some chance comes with them."""
    host = "".join(c for c in socket.gethostname() if c.isprintable())[:60]
    return f"{host}:{os.getpid()}-{token_hex(2)}"


def is_again(record: TrialRecord, known: TrialRecord) -> bool:
    """Whether both are the same measurement under two numbers."""
    return (record.config, record.outcome, record.wall_s) == (known.config, known.outcome, known.wall_s)
