"""Commands on the pages can be typed as they stand, and links on them lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from commands import ROOT
from pages import PAGES, anchors, blocks, prose, typed
from pages import ROOT as CHECKOUT

OPERATORS = {"|", "||", "&&", ";", "&", "(", ")"}
RELATIVE = [str(page.relative_to(CHECKOUT)) for page in PAGES]


def commands(line: str) -> Iterator[list[str]]:
    """The arguments of every moetune in a line of shell, without variables before it and files behind it."""
    lexer = shlex.shlex(line.replace("$(", "( ").replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.wordchars += "$:{}@%+,"
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token in OPERATORS or set(token) <= set("();&|"):
            name = next((i for i, word in enumerate(words) if "=" not in word), len(words))
            if words[name : name + 1] == ["moetune"]:
                yield before_files(words[name + 1 :])
            words = []
        else:
            words.append(token)


def before_files(words: list[str]) -> list[str]:
    """Without `> file` and `2> file`."""
    return words[: next((i - (words[i - 1] == "2") for i, word in enumerate(words) if set(word) <= set("<>&")), None)]


def parse(arguments: list[str]) -> None:
    """As the program would, up to the point where it would begin; raises what a wrong flag or value raises."""
    command, context = ROOT, ROOT.make_context("moetune", arguments)
    while getattr(command, "commands", None):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=RELATIVE)
def test_every_command_on_a_page_parses(page: Path) -> None:
    """With the program's own parser: no flag is misspelt, no value of a kind that it does not take."""
    for line in typed(page):
        for arguments in commands(line):
            # `--version` and `--help` have done their work when they are parsed.
            with suppress(typer.Exit):
                parse(arguments)


@pytest.mark.parametrize(
    "line", ["moetune probe --no-such-flag", "x=1 moetune no-such-command", "git diff | moetune run"]
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    """The test above can fail."""
    with pytest.raises(Exception, match=r"No such|Missing"):
        for arguments in commands(line):
            parse(arguments)


def test_pages_with_commands_were_read() -> None:
    """There are many; none hides in a block that is no console. The data flow of structure.md is not for typing."""
    assert sum(1 for page in PAGES for line in typed(page) for _ in commands(line)) > 60
    hidden = [
        (page.name, block.text)
        for page in PAGES
        if page.name != "structure.md"
        for block in blocks(page)
        if block.kind not in ("console", "text") and re.search(r"^(\$ )?moetune \w+ .*--\w", block.text, re.MULTILINE)
    ]
    assert hidden == []


@pytest.mark.parametrize("page", PAGES, ids=RELATIVE)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files and their headings; the web is not asked."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []
