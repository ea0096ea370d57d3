"""The pages for users, their code blocks and their links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the word behind the first one."""

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def typed(page: Path) -> Iterator[str]:
    """Every command line of the page's consoles, with the lines that a backslash continues."""
    for block in blocks(page):
        if block.kind == "console":
            yield from (line.strip() for line in re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE))


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links to headings of this page may say, by GitHub's rules."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{n}" for n in range(1, 99))) if name not in found))
    return found
