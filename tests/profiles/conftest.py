"""A profile that is valid in every field, and a store in a folder of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from moetune.profiles.schema import Profile, read_profile
from moetune.profiles.store import ProfileStore

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def profile() -> Profile:
    return read_profile(GOLDENS / "profile-v1.yaml")


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "profiles")


@pytest.fixture
def other_context(profile: Profile) -> Profile:
    """The same model, machine and workload at half the context, found a year later."""
    config = replace(profile.config, n_ctx=4096)
    return replace(profile, n_ctx=4096, config=config, created_at="2027-03-14T09:26:53+00:00")
