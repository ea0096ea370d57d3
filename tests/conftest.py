"""Helpers in this folder are imported by name from every test folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
