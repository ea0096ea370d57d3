"""Each mistake gives one message with cause and remedy, and its own exit code; nothing is lost."""

from pathlib import Path

import pytest
from command_outcome import Command

from moetune.cli.machine import seen_machine
from moetune.errors import ExitCode


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the machine's rates, which take seconds to measure."""
    monkeypatch.setattr("moetune.cli.search.measured_machine", seen_machine)


def broken(kind: str, tmp_path: Path, model_file: Path) -> Path:
    path = tmp_path / f"{kind}.gguf"
    whole = model_file.read_bytes()
    match kind:
        case "directory":
            path.mkdir()
        case "text":
            path.write_text("This is not a model.\n" * 20)
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "corrupted":
            path.write_bytes(whole[:16] + b"\xff" * 64 + whole[80:])
    return path


@pytest.mark.parametrize("kind", ["missing", "directory", "text", "empty", "truncated", "corrupted"])
@pytest.mark.parametrize("name", ["probe", "search", "run", "serve"])
def test_a_file_that_is_no_model(command: Command, tmp_path: Path, model_file: Path, kind: str, name: str) -> None:
    """Every command refuses it by name before it looks at the machine."""
    path = broken(kind, tmp_path, model_file)
    prompt = ["-p", "hi"] if name == "run" else []
    command(name, str(path), *prompt).complains(ExitCode.MODEL, str(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serach"], ["No such command", "search"]),
        (["search"], ["MODEL"]),
        (["search", "MODEL", "--trials", "0"], ["--trials"]),
        (["search", "MODEL", "--trials", "many"], ["--trials"]),
        (["search", "MODEL", "--bogus"], ["--bogus", "moetune search --help"]),
        (["search", "MODEL", "--workload", "chta"], ["chta", "chat, code, long"]),
        (["search", "MODEL", "--workload", "./none.yaml"], ["none.yaml", "cannot be read"]),
        (["search", "MODEL", "--ctx", "1025"], ["1025", "1024"]),
        (["search", "MODEL", "--ctx", "-1"], ["-1"]),
        (["search", "MODEL", "--kv", "f16,q9"], ["q9", "q8_0"]),
        (["search", "MODEL", "--kv", ""], ["--kv", "f16"]),
        (["search", "MODEL", "--quality", "best"], ["--quality", "near-lossless"]),
        (["search", "MODEL", "--emulate", "toaster"], ["toaster", "desktop"]),
        (["search", "MODEL", "--emulate", "desktop,vram_mib=lots"], ["vram_mib"]),
        (["run", "MODEL", "-p", "hi", "--max-tokens", "0"], ["--max-tokens"]),
        (["run", "MODEL", "-p", "hi", "--temperature", "nan"], ["--temperature"]),
        (["run", "MODEL", "-p", "hi", "--temperature", "-1"], ["--temperature"]),
        (["run", "MODEL", "-p", "hi", "--chat"], ["--chat", "--raw"]),
        (["run", "MODEL", "-p", " \n"], ["prompt is empty"]),
        (["run", "MODEL"], ["no prompt", "-p"]),
        (["serve", "MODEL", "--host", "::"], ["::", "MOETUNE_API_KEY"]),
        (["serve", "MODEL", "--host", "no.such.host.invalid"], ["no.such.host.invalid", "127.0.0.1"]),
        (["serve", "MODEL", "--host", "192.0.2.1", "--api-key", "long-enough", "--ctx", "256"], ["192.0.2.1"]),
        (["serve", "MODEL", "--api-key", "short"], ["API key", "8"]),
        (["serve", "MODEL", "--parallel", "0"], ["--parallel"]),
        (["serve", "MODEL", "--port", "70000"], ["--port"]),
        (["serve", "MODEL", "--max-body", "nan"], ["--max-body"]),
        (["serve", "MODEL", "--ctx", "9"], ["64", "1024"]),
        (["probe", "--fresh", "--no-measure"], ["--fresh", "--no-measure"]),
        (["probe", "--format", "xml"], ["xml", "yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_or_argument(command: Command, model_file: Path, arguments: list[str], words: list[str]) -> None:
    """The message names the flag and what it takes; the exit code is 2."""
    filled = [str(model_file) if argument == "MODEL" else argument for argument in arguments]
    command(*filled).complains(ExitCode.USAGE, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot be read", "No such file"]),
        ("folder", ["cannot be read"]),
        (b"", ["is empty"]),
        (b" \n" * 9, ["is empty"]),
        (b"\xff\xfe" * 900, ["not UTF-8 text (byte 0)"]),
        (b"\x00" * 900, ["zero bytes"]),
        (b"word " * (1 << 20), ["larger than 4 MiB"]),
        (b"x" + "é".encode() * (1 << 22), ["larger than 4 MiB"]),
        (b"too short", ["tokens; one chunk takes 512", "longer --quality-text"]),
    ],
    ids=["missing", "folder", "nothing", "blank", "not UTF-8", "binary", "too large", "cut", "too short"],
)
def test_a_quality_text_that_cannot_be_measured_on(
    command: Command, model_file: Path, folders: Path, content: bytes | str | None, words: list[str]
) -> None:
    """It is found out before anything is measured: no study is begun."""
    path = folders / "quality.txt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    result = command("search", str(model_file), "--device", "none", "--quality-text", str(path))
    assert [word for word in words if word not in result.err] == []
    assert (result.code, "Traceback" in result.err) == (ExitCode.USAGE, False)
    assert not list(folders.rglob("*.journal"))


@pytest.mark.parametrize("piped", [b"", b"\n\n", b"\xff\xfe\x00"], ids=["nothing", "blank", "not text"])
def test_standard_input_without_a_prompt(command: Command, model_file: Path, piped: bytes) -> None:
    """Nothing, blank lines and binary data are no prompt."""
    command("run", str(model_file), piped=piped).complains(ExitCode.USAGE)


def test_an_unknown_device_lists_those_there_are(command: Command, model_file: Path) -> None:
    """The names come from llama.cpp's own registry."""
    command("search", str(model_file), "--device", "CUDA9").complains(ExitCode.DEVICE, "CUDA9", "CPU")


def test_a_config_folder_that_cannot_be_written_stops_a_search_at_once(
    command: Command, model_file: Path, folders: Path
) -> None:
    """It is found out before anything is measured, not when the result shall be saved."""
    (folders / "config").write_text("in the way")
    command("search", str(model_file)).complains(ExitCode.STORAGE, str(folders / "config"), "MOETUNE_CONFIG_DIR")


def test_a_state_folder_that_cannot_be_written_stops_a_search_at_once(
    command: Command, model_file: Path, folders: Path
) -> None:
    """Trials that could not be kept are not begun."""
    (folders / "state").write_text("in the way")
    result = command("search", str(model_file))
    assert result.code == ExitCode.STORAGE
    assert str(folders / "state") in result.err
    assert "Traceback" not in result.err


def test_names_with_terminal_codes_are_shown_without_them(command: Command) -> None:
    """A file name cannot clear the screen."""
    result = command("probe", "evil\x1b[2J.gguf")
    assert result.code == ExitCode.MODEL
    assert "\x1b" not in result.err
