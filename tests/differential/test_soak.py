"""The soak, for as long as a test may last; `make soak` runs it for an hour."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("soak.py")


def _soak(minutes: float, tier: str) -> dict[str, float]:
    command = [sys.executable, str(PROGRAM), "--minutes", str(minutes), "--tier", tier]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes + 240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report: dict[str, float] = json.loads(done.stdout)
    assert min(report[what] for what in ("hits", "misses", "promotions", "settings_changed")) > 100
    return report


@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_changing_settings_change_no_token(tier: str) -> None:
    """A few rounds of everything at random."""
    assert _soak(0.05, tier)["rounds"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["CPU", "EMU0"])
def test_nothing_grows_while_settings_change(tier: str) -> None:
    """Minutes of everything at random: no difference, and memory stays as it is."""
    assert _soak(5, tier)["rounds"] > 100
