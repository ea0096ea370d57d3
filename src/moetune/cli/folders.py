"""Where moetune keeps what it can measure again: studies and probe results."""

import os
from pathlib import Path

from platformdirs import user_state_path

STATE_DIR_VARIABLE = "MOETUNE_STATE_DIR"


def state_folder() -> Path:
    """`MOETUNE_STATE_DIR` when that is set, else the user's state folder."""
    override = os.environ.get(STATE_DIR_VARIABLE)
    return Path(override) if override else user_state_path("moetune")


def studies_folder() -> Path:
    """Journals of searches, so that an interrupted one resumes."""
    return state_folder() / "studies"


def machines_folder() -> Path:
    """Measured machines, by fingerprint."""
    return state_folder() / "machines"
