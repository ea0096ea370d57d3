"""`moetune export`: which profile is written, in which shape, and what is said beside it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_outcome import Command
from saved_profile import TUNED, profile_of

from moetune.engine.library import plugin_path
from moetune.errors import ExitCode
from moetune.profiles.schema import Profile
from moetune.profiles.store import ProfileStore, name_of


@pytest.fixture
def saved(model_file: Path) -> Profile:
    profile = profile_of(model_file)
    ProfileStore().save(profile)
    return profile


def words(text: str) -> list[str]:
    return shlex.split(text.replace("\\\n", " "))


def test_the_profile_becomes_a_command(command: Command, model_file: Path, saved: Profile) -> None:
    """Program, flags and the plugin's variables on standard output; whose they are and what they need beside it."""
    done = command("export", str(model_file), "--", "--port", "9000")
    assert done.code == ExitCode.OK
    start = words(done.out)
    assert start[0] == "env"
    assert {f"GGML_BACKEND_PATH={plugin_path()}", "HOTCACHE_SLOTS=3", "HOTCACHE_INTERVAL=4"} <= set(start)
    assert start[start.index("-m") + 1] == str(model_file)
    assert start[-2:] == ["--port", "9000"]
    said = " ".join(done.err.split())
    assert name_of(saved)[:8] in said
    assert f"{saved.gain:.2f}× as fast as {saved.baseline_name}" in said
    assert "ggml 0.25.3" in said
    assert max(map(len, done.err.splitlines())) <= 80


def test_stock_is_what_the_cache_had_to_beat(command: Command, model_file: Path, saved: Profile) -> None:
    """The baseline's own settings, no plugin, and every loss by its name and in seconds."""
    done = command("export", str(model_file), "--stock")
    start = words(done.out)
    assert Path(start[0]).name == "llama-server"
    assert start[start.index("-t") + 1] == "2"
    said = " ".join(done.err.split())
    assert "cache.slots 3" in said
    assert "cache.interval_tokens 4" in said
    assert "12.1 s instead of 8.7 s a turn" in said
    data = json.loads(command("export", str(model_file), "--stock", "--as", "json").out)
    assert data["environment"] == {}
    assert data["lost"]["cache.slots"] == "3"


def test_stock_without_a_known_baseline_is_the_same_without_the_cache(command: Command, model_file: Path) -> None:
    """And says that nobody measured it."""
    ProfileStore().save(replace(profile_of(model_file), baseline_config=None))
    done = command("export", str(model_file), "--stock")
    start = words(done.out)
    assert start[start.index("-t") + 1] == "1"
    assert "not measured" in done.err


@pytest.mark.parametrize("shape", ["systemd", "env", "json", "yaml"])
def test_every_shape_says_the_same(
    command: Command, model_file: Path, saved: Profile, shape: str, tmp_path: Path
) -> None:
    """Each names the model and the slots, and the remarks travel along."""
    out = tmp_path / "out"
    done = command("export", str(model_file), "--as", shape, "--out", str(out))
    assert (done.code, done.out) == (ExitCode.OK, "")
    text = out.read_text()
    assert str(model_file) in text
    assert name_of(saved)[:8] in text
    if shape in ("json", "yaml"):
        data = yaml.safe_load(text)
        assert data["environment"]["HOTCACHE_SLOTS"] == "3"
        assert data["program"] == json.loads(command("export", str(model_file), "--as", "json").out)["program"]
    else:
        assert "HOTCACHE_SLOTS=3" in text


def test_a_profile_from_elsewhere_is_written_only_by_name_and_with_a_warning(
    command: Command, model_file: Path, saved: Profile
) -> None:
    """What was measured on another machine promises nothing here."""
    ProfileStore().remove(saved)
    foreign = replace(saved, machine_fingerprint="elsewhere", machine_label="the big one")
    ProfileStore().save(foreign)
    refused = command("export", str(model_file))
    assert refused.code == ExitCode.USAGE
    assert refused.out == ""
    assert "another machine: the big one" in " ".join(refused.err.split())
    assert f"moetune search {model_file}" in refused.err
    named = command("export", str(model_file), "--profile", name_of(foreign)[:8])
    assert named.code == ExitCode.OK
    assert "warning:" in named.err
    assert "HOTCACHE_SLOTS=3" in named.out


def test_an_emulated_profile_brings_its_machine_along(command: Command, model_file: Path, saved: Profile) -> None:
    """The emulator's variables, and the link without which it is not found."""
    emulated = replace(
        saved, machine_fingerprint="m", emulated="desktop,vram_mib=8", config=replace(TUNED, device="EMU0")
    )
    ProfileStore().save(emulated)
    done = command("export", str(model_file), "--profile", name_of(emulated)[:8])
    assert {"EMU_VRAM_MIB=8", "HOTCACHE_COLD_DEVICE=EMUHOST", "HOTCACHE_DEVICE=EMU0"} <= set(words(done.out))
    assert "libggml-vulkan.so" in done.err
    assert "--emulate desktop,vram_mib=8" in " ".join(done.err.split())


def test_the_program_is_made_absolute_where_it_is_found(command: Command, model_file: Path, saved: Profile) -> None:
    """A unit needs that; what is not found is left as it was given."""
    data = json.loads(command("export", str(model_file), "--as", "json", "--server", "sh").out)
    assert Path(data["program"]).is_absolute()
    data = json.loads(command("export", str(model_file), "--as", "json", "--server", "no such thing").out)
    assert data["program"] == "no such thing"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--as", "docker"], "docker"),
        (["--as", "env", "--", "--port", "1"], "environment file"),
        (["--profile", "nobody"], "no profile"),
        (["--profile", "nobody", "--ctx", "256"], "--profile"),
        (["--workload", "nothing"], "nothing"),
        (["--emulate", "toaster"], "toaster"),
        (["--port", "9000"], "--port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_said(command: Command, model_file: Path, saved: Profile, arguments: list[str], said: str) -> None:
    """One message with a remedy."""
    command("export", str(model_file), *arguments).complains(ExitCode.USAGE, said)


def test_a_profile_of_another_model_is_refused(
    command: Command, model_file: Path, slow_model: Path, saved: Profile
) -> None:
    """Also by name."""
    command("export", str(slow_model), "--profile", name_of(saved)[:8]).complains(ExitCode.USAGE, "another model")
