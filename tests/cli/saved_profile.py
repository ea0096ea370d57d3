"""A profile of a model on this machine, as a search would have saved it."""

from dataclasses import replace
from pathlib import Path

from moetune.cli.machine import seen_machine
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.library import engine_version
from moetune.engine.model import read_model
from moetune.profiles.schema import Profile, read_profile

GOLDEN = Path(__file__).parents[1] / "profiles" / "goldens" / "profile-v3.yaml"
BASELINE = EngineConfig(n_ctx=256, n_threads=2)
TUNED = EngineConfig(n_ctx=256, n_threads=1, device="CPU", cache=CacheKnobs(slots=3, interval_tokens=4))


def profile_of(model_file: Path, config: EngineConfig = TUNED) -> Profile:
    return replace(
        read_profile(GOLDEN),
        model_fingerprint=read_model(model_file).fingerprint,
        machine_fingerprint=seen_machine(None, None).fingerprint,
        engine_version=engine_version(),
        n_ctx=256,
        config=config,
        baseline_config=BASELINE,
    )
