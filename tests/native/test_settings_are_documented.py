"""Every setting of the cache is in the guide's table, and the guide names no other."""

import re
from pathlib import Path

from compile import SOURCES

GUIDE = Path(__file__).parents[2] / "docs" / "stock-llama-cpp.md"


def test_guide_lists_exactly_the_settings_there_are() -> None:
    """A setting that nobody can look up does not exist for users; one that is gone misleads them."""
    declared = re.search(r"constexpr std::array keys = \{(.*?)\};", (SOURCES / "cache/settings.cpp").read_text(), re.S)
    assert declared
    table = GUIDE.read_text().split("## Settings")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert sorted(documented) == sorted(re.findall(r'"(\w+)"', declared[1]))
