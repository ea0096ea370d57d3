"""docs/troubleshooting.md says of every exit code who has to act."""

import re
from pathlib import Path

from moetune.errors import ExitCode

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def test_every_exit_code_is_in_the_table_with_its_name() -> None:
    """Scripts go by the number, people by the name."""
    table = PAGE.split("## Exit codes")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d+) \| (\w+) \| \S", table, re.MULTILINE))
    assert {str(code.value): code.name for code in ExitCode}.items() <= rows.items()
