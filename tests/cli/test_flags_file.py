"""The config file: defaults by flags' names, below the command line, and every way it can be wrong."""

import json
import os
from pathlib import Path

import pytest
import typer.main
import yaml
from command_outcome import Command
from hypothesis import given
from hypothesis import strategies as st

from moetune.cli.app import app
from moetune.cli.config_file import config_path, read_defaults
from moetune.errors import ExitCode, MoetuneError

PROGRAM = typer.main.get_command(app)


@pytest.fixture
def config() -> Path:
    """Where the file is to lie."""
    path = config_path()
    path.parent.mkdir(parents=True)
    return path


def test_a_flag_has_the_default_that_the_file_says(command: Command, config: Path) -> None:
    """Of its own command only; the flag itself comes first."""
    config.write_text("probe: {format: json, no-measure: true}\n")
    assert json.loads(command("probe").out)["fingerprint"]
    assert yaml.safe_load(command("probe", "--format", "yaml").out)["fingerprint"]
    assert "fingerprint" in command("probe", "--format", "table").out.splitlines()[2]


def test_commands_below_commands_have_defaults_too(command: Command, config: Path) -> None:
    """As the user would type them."""
    config.write_text("study: {list: {format: json}}\n")
    assert json.loads(command("study", "list").out) == []


def test_the_environment_comes_before_the_file(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nearer to the user than a file is."""
    config.write_text('study: {list: {storage: "mysql://file"}}\n')
    assert "mysql" in command("study", "list").err
    monkeypatch.setenv("MOETUNE_STORAGE", "oracle://environment")
    assert "oracle" in command("study", "list").err


def test_switches_lists_and_numbers(config: Path) -> None:
    """A switch's other name turns it off; numbers arrive as they were written."""
    config.write_text(
        "run: {raw: true, max-tokens: 512, temperature: 0.5, verbose: true}\n"
        "trace: {text: [a.txt, b.txt], workload: code}\n"
    )
    assert read_defaults(PROGRAM) == {
        "run": {"chat": False, "max_tokens": "512", "temperature": "0.5", "verbose": True},
        "trace": {"text": ["a.txt", "b.txt"], "workload": ["code"]},
    }


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n", "run: {}\n"])
def test_a_file_may_say_nothing(config: Path, text: str) -> None:
    """Commented out, or not begun."""
    config.write_text(text)
    assert read_defaults(PROGRAM) in ({}, {"run": {}})


def test_no_file_is_no_error() -> None:
    """Nor is no folder."""
    assert read_defaults(PROGRAM) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rnu: {ctx: 4096}", ["no command 'rnu'", "'run'"]),
        ("run: {max-token: 3}", ["moetune run has no flag 'max-token'", "'max-tokens'"]),
        ("run: {--ctx: 4096}", ["no flag '--ctx'"]),
        ("run: {model-file: m.gguf}", ["no flag 'model-file'"]),
        ("run: {help: true}", ["no flag 'help'"]),
        ("run: 4096", ["run has no flags below it"]),
        ("run: {verbose: 1}", ["moetune run, verbose is 1", "true or false"]),
        ("run: {ctx: true}", ["moetune run, ctx is True"]),
        ("run: {ctx: [1, 2]}", ["moetune run, ctx is [1, 2]"]),
        ("run: {ctx: }", ["moetune run, ctx is None"]),
        ("trace: {text: [a, [b]]}", ["trace, text is", "a list of them"]),
        ("study: {format: json}", ["no command 'format'"]),
        ("study: {list: {formt: json}}", ["moetune study list has no flag 'formt'", "'format'"]),
        ("- run", ["not a mapping"]),
        ("run: [", ["not valid YAML at line"]),
        ("a: &a {ctx: 1}\nrun: *a", ["aliases"]),
        ("run: {ctx: 1, ctx: 2}", ["appears twice"]),
        ("run: !!python/object:os.system {}", ["not valid YAML"]),
        ("#" * 70_000, ["larger than 65536 bytes"]),
    ],
)
def test_what_the_file_must_not_say(command: Command, config: Path, text: str, words: list[str]) -> None:
    """One message with the file's name, whichever command was meant."""
    config.write_text(text)
    command("probe", "--no-measure").complains(ExitCode.USAGE, str(config), *words)


def test_a_value_that_its_flag_does_not_take(command: Command, config: Path) -> None:
    """Found out where the flag is used, with the file's name; another command is not disturbed."""
    config.write_text("run: {max-tokens: many}\n")
    command("run", "m.gguf").complains(ExitCode.USAGE, "--max-tokens", "integer", str(config))
    assert str(config) not in command("run", "m.gguf", "--max-tokens", "none").err
    assert command("probe", "--no-measure").code == ExitCode.OK


def test_a_file_that_cannot_be_read(command: Command, config: Path) -> None:
    """A folder in its place, for one."""
    config.mkdir()
    command("probe", "--no-measure").complains(ExitCode.STORAGE, str(config))


def test_the_version_and_the_help_do_not_need_it(command: Command, config: Path) -> None:
    """Whatever is wrong with it."""
    config.write_text("no")
    assert command("--version").code == command().code == ExitCode.OK


@given(st.binary(max_size=200))
def test_no_file_at_all_is_a_bug(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Anything is defaults or an error with a remedy."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.yaml").write_bytes(raw)
    before = os.environ["MOETUNE_CONFIG_DIR"]
    os.environ["MOETUNE_CONFIG_DIR"] = str(folder)
    try:
        assert isinstance(read_defaults(PROGRAM), dict)
    except MoetuneError as error:
        assert error.remedy
    finally:
        os.environ["MOETUNE_CONFIG_DIR"] = before
