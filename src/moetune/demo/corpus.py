"""The text the demo model is trained on: program source and prose that every Debian system carries.

Nothing is downloaded. *Code* is the standard library of the running interpreter; *prose* is the installed manual
pages, the common licences, the packages' copyright files and the language reference that ``pydoc`` ships.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

WORKLOADS = ("code", "prose")

_MAN = Path("/usr/share/man")
_SECTIONS = ("man1", "man2", "man3", "man4", "man5", "man6", "man7", "man8")
# Generated character tables, vendored tests, and the file that records how this interpreter was built.
_NOT_SOURCE = re.compile(r"(^|/)(tests?|idle_test|site-packages|dist-packages|encodings|pydoc_data|__pycache__)/")
_NOT_PORTABLE = re.compile(r"_sysconfigdata|sitecustomize|^test_")
# One cloud command-line tool can install 16,000 pages of one template; they would drown everything else.
_BULK = re.compile(r"^gcloud")
# A few shell and compiler pages are as long as books.
_LONGEST_CHARS = 200_000
_HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Document:
    """One file of one workload. ``name`` decides the split, so the same file lands on the same side everywhere."""

    workload: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0


def read_corpus() -> list[Document]:
    """Every usable document, sorted by name and free of duplicates.

    Raises FileNotFoundError when the interpreter's sources or the manual pages (or ``man`` itself) are missing.
    """
    documents = [*_source_files(), *_reference_topics(), *_licences(), *_manual_pages()]
    unique: dict[str, Document] = {}
    for document in sorted(documents, key=lambda d: d.name):
        unique.setdefault(hashlib.sha256(document.text.encode()).hexdigest(), document)
    return list(unique.values())


def _source_files() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if _NOT_SOURCE.search(name) or _NOT_PORTABLE.search(path.name):
            continue
        text = _tidy(path.read_text(encoding="utf-8", errors="ignore"))
        if len(text) > 200:
            yield Document("code", f"python/{name}", text)


def _reference_topics() -> Iterator[Document]:
    for name, text in topics.items():
        yield Document("prose", f"topic/{name}", _tidy(text))


def _licences() -> Iterator[Document]:
    licences = Path("/usr/share/common-licenses")
    files = [p for p in sorted(licences.glob("*")) if p.is_file() and not p.is_symlink()]
    files += sorted(Path("/usr/share/doc").glob("*/copyright"))[::4]
    for path in files:
        text = _tidy(path.read_text(encoding="utf-8", errors="ignore"))
        yield Document("prose", f"licence/{path.parent.name}/{path.name}", text[:12_000])


def _manual_pages() -> Iterator[Document]:
    if shutil.which("man") is None or not _MAN.is_dir():
        raise FileNotFoundError("manual pages are needed: apt-get install man-db manpages manpages-dev git-man")
    pages = [
        page
        for section in _SECTIONS
        for page in sorted((_MAN / section).glob("*.gz"))
        if not page.is_symlink() and not _BULK.match(page.name)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for page, text in zip(pages, pool.map(_render, pages), strict=True):
            if len(text) > 400:
                yield Document("prose", f"man/{page.parent.name}/{page.stem}", text)


def _render(page: Path) -> str:
    """A manual page as plain 80-column text; empty when the formatter refuses it."""
    # Without justification and hyphenation: the model should learn words, not padding.
    command = ["man", "--no-justification", "--no-hyphenation", "--encoding=utf-8", "--local-file", str(page)]
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "PAGER": "cat"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    return _tidy(re.sub(".\b", "", done.stdout.decode("utf-8", "ignore")))


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]+$", "", text.expandtabs(8), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")[:_LONGEST_CHARS] + "\n"
