"""What a configuration becomes for stock llama-server: nothing is left out without being named, nothing misquoted."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from test_config_fields import OTHER, OTHER_KNOBS, USUAL

from moetune.engine.config import CacheKnobs, EngineConfig, LoadMode
from moetune.engine.emulator import parse_emulated
from moetune.engine.launch_text import as_command, as_data, as_environment_file, as_systemd_unit
from moetune.engine.library import cache_settings, plugin_path
from moetune.engine.server_launch import ServerLaunch, server_launch
from moetune.errors import ExitCode, MoetuneError

NATIVE = Path(__file__).parents[2] / "engine" / "native" / "cache"
MODEL = Path("/models/model.gguf")
TWO_DEVICES = replace(OTHER, cache=CacheKnobs(slots=4))
ODD_NAMES = [
    "a b",
    "it's",
    'say "hi"',
    "$HOME `id` $(id)",
    "100%h",
    "back\\slash\\",
    "semi;colon",
    ";",
    "*?[a]",
    "ü",
    "-m",
]


def launched(config: EngineConfig, *, stock: bool = False) -> ServerLaunch:
    return server_launch(config, MODEL, stock=stock)


@pytest.mark.parametrize("name", [field.name for field in fields(EngineConfig)])
@pytest.mark.parametrize("stock", [False, True], ids=["plugin", "stock"])
def test_every_field_is_carried_over_or_named_as_lost(name: str, stock: bool) -> None:
    """Another value of a field is another command, or another loss."""
    changed = replace(TWO_DEVICES, **{name: getattr(USUAL, name) if name != "cache" else OTHER_KNOBS})
    before, after = launched(TWO_DEVICES, stock=stock), launched(changed, stock=stock)
    assert (before.arguments, before.environment) != (after.arguments, after.environment) or before.lost != after.lost


@pytest.mark.parametrize("name", [field.name for field in fields(CacheKnobs)])
def test_every_knob_of_the_cache_reaches_the_plugin_or_is_named_as_lost(name: str) -> None:
    """But the guard, which is on wherever nothing is measured; without the plugin every knob is lost, value and all."""
    usual = CacheKnobs(slots=1)
    cache = replace(usual, **{name: getattr(OTHER_KNOBS, name)})
    before, after = launched(replace(USUAL, cache=usual)), launched(replace(USUAL, cache=cache))
    assert (before.environment == after.environment) == (name == "guard")
    assert after.lost == ()
    stock = launched(replace(USUAL, cache=cache), stock=True)
    assert not any("HOTCACHE" in variable or "GGML" in variable for variable, _ in stock.environment)
    assert {lost.field: lost.value for lost in stock.lost}[f"cache.{name}"] == str(getattr(OTHER_KNOBS, name))


def test_what_is_left_out_is_what_the_plugin_does_by_itself() -> None:
    """Its defaults in C++ are those that the command leaves out, and a cache that is off still holds the experts."""
    header = (NATIVE / "settings.h").read_text() + (NATIVE / "slot_table.h").read_text()
    in_header = {
        "policy": "ranking",
        "interval": "interval_tokens",
        "dwell": "dwell_tokens",
        "half_life": "half_life_tokens",
        "reserve": "reserve_bytes",
        "bytes": "budget_bytes",
    }
    same = {"automatic": "auto", "true": "1", "false": "0", "": ""}
    for key, value in cache_settings(CacheKnobs(slots=0, guard=True)).items():
        found = re.search(rf"\b{in_header.get(key, key)}(?: = (?:\w+::)?([\w.]+))?;", header)
        assert found, key
        default = found[1] or ""
        assert same.get(default, default) == value, key
    assert dict(launched(replace(USUAL, cache=CacheKnobs(slots=0))).environment) == {
        "GGML_BACKEND_PATH": str(plugin_path()),
        "HOTCACHE_DEVICE": "CUDA0",
        "HOTCACHE_HOLD": "1",
    }


def test_the_cpu_as_its_own_fast_tier_makes_the_program_look_for_the_plugin() -> None:
    """No flag names a backend then."""
    launch = launched(EngineConfig(n_ctx=512, n_threads=1, device="CPU", cache=CacheKnobs(slots=4)))
    assert dict(launch.environment)["LLAMA_ARG_OVERRIDE_TENSOR"] == "^$=CPU"
    assert launch.arguments[2:6] == ("--device", "none", "-ngl", "0")


def test_a_configuration_without_a_device_leaves_every_device_alone() -> None:
    """llama-server would take a GPU by itself."""
    launch = launched(EngineConfig(n_ctx=512, n_threads=1))
    assert launch.environment == ()
    assert "none" in launch.arguments
    assert "-tb" not in launch.arguments


def test_an_emulated_machine_travels_along() -> None:
    """Its speeds, its slow host for the misses, and the library that has to lie at hand."""
    emulated = parse_emulated("desktop,vram_mib=8")
    launch = server_launch(replace(USUAL, device="EMU0"), MODEL, emulated=emulated)
    told = dict(launch.environment)
    assert emulated.environment().items() <= told.items()
    assert told["HOTCACHE_COLD_DEVICE"] == "EMUHOST"
    assert launch.link is not None
    alone = server_launch(replace(USUAL, device=None, cache=None), MODEL, emulated=emulated)
    assert (alone.environment, alone.link) == ((), None)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A program that writes down how it was started, under a name with much that needs quoting."""
    path = tmp_path / "llama $server (100%h) ; witness"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n")
    path.chmod(0o755)
    return path


def odd_launch(program: Path, odd: str) -> ServerLaunch:
    cache = CacheKnobs(slots=4, routing=f"/r/{odd}", workload=odd)
    config = replace(OTHER, cache=cache, device=odd)
    return server_launch(config, Path(f"/m/{odd}.gguf"), program=str(program))


@pytest.mark.parametrize("odd", [*ODD_NAMES, "two\nlines"], ids=repr)
def test_a_shell_starts_what_was_meant(witness: Path, odd: str) -> None:
    """Every word and every variable arrives as it is."""
    launch = odd_launch(witness, odd)
    done = subprocess.run(["sh", "-c", as_command(launch)], capture_output=True, text=True, check=True)
    arguments, environment = json.loads(done.stdout)
    assert tuple(arguments) == launch.arguments
    assert dict(launch.environment).items() <= environment.items()


@pytest.mark.parametrize("odd", ODD_NAMES, ids=repr)
def test_an_environment_file_says_it_all_to_a_shell(witness: Path, odd: str, tmp_path: Path) -> None:
    """llama-server's own variables and the plugin's; the one flag without a variable is a comment."""
    launch = odd_launch(witness, odd)
    file = tmp_path / "llama.env"
    file.write_text(as_environment_file(launch, ["made\nfor tests \\"]))
    read = f"set -a; . {shlex.quote(str(file))}; {shlex.quote(str(witness))}"
    done = subprocess.run(["sh", "-c", read], capture_output=True, text=True, check=True)
    assert dict(launch.variables).items() <= json.loads(done.stdout)[1].items()
    assert file.read_text().startswith("# made for tests\n# not in here, add to the command: -tb 7\n")
    assert len(launch.variables) == len(launch.environment) + len(launch.settings) - 1


def systemd_words(line: str) -> list[str]:
    """The words of a unit's line by systemd.syntax(7) and systemd.service(5): quotes, C escapes, %% for %."""
    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S+)', line):
        text = re.sub(r"\\(x[0-9a-f]{2}|.)", lambda m: chr(int(m[1][1:], 16)) if m[1][1:] else m[1], quoted) or bare
        assert not re.search(r"(?<!%)%(?:%%)*(?!%)", text), "a lone % is a specifier"
        words.append(text.replace("%%", "%"))
    return words


@pytest.mark.parametrize("odd", [*ODD_NAMES, "two\nlines"], ids=repr)
def test_a_systemd_unit_starts_what_was_meant(witness: Path, odd: str) -> None:
    """Spaces, quotes, percent signs and backslashes by systemd's rules; dollars by the colon."""
    launch = odd_launch(witness, odd)
    unit = as_systemd_unit(launch, f"{odd} \\", ["a remark"])
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *arguments = systemd_words(start)
    assert program == f":{witness}"
    assert tuple(arguments) == launch.arguments
    told = [word for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE) for word in systemd_words(line)]
    assert told == [f"{name}={value}" for name, value in launch.environment]
    assert not [line for line in unit.splitlines() if line.endswith("\\")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("odd", ODD_NAMES, ids=repr)
def test_systemd_accepts_the_unit_and_finds_its_program(witness: Path, odd: str, tmp_path: Path) -> None:
    """systemd itself finds nothing to complain about, the path of the program included."""
    unit = tmp_path / "llama.service"
    unit.write_text(as_systemd_unit(odd_launch(witness, odd), odd))
    verify = ["systemd-analyze", "--user", "verify", str(unit)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(verify, capture_output=True, text=True, env=environment)
    assert (done.returncode, "llama.service" in done.stderr) == (0, False), done.stderr
    witness.unlink()
    done = subprocess.run(verify, capture_output=True, text=True, env=environment)
    assert str(witness) in done.stderr


@pytest.mark.parametrize("name", ["it's", 'the "best"', "back\\slash"])
def test_a_program_that_systemd_refuses_is_refused_here(name: str) -> None:
    """systemd says so only when the unit is loaded."""
    with pytest.raises(MoetuneError, match="systemd") as caught:
        as_systemd_unit(server_launch(USUAL, MODEL, program=f"/opt/{name}/llama-server"), "x")
    assert caught.value.code is ExitCode.USAGE


def test_a_command_is_folded_at_80_columns() -> None:
    """Between words; only what is longer by itself stands out."""
    config = EngineConfig(n_ctx=512, n_threads=1, device="CUDA0", gpu_layers=99, ram_expert_layers=40)
    lines = as_command(launched(config)).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80


def test_locked_memory_is_allowed_where_it_is_asked_for() -> None:
    """mlock fails at systemd's usual limit."""
    assert "LimitMEMLOCK" not in as_systemd_unit(launched(USUAL), "x")
    assert "LimitMEMLOCK=infinity" in as_systemd_unit(launched(replace(USUAL, load_mode=LoadMode.MMAP_MLOCK)), "x")


def test_data_is_plain() -> None:
    """What JSON gives back is what went in."""
    data = as_data(launched(TWO_DEVICES, stock=True))
    assert json.loads(json.dumps(data)) == data
    assert data["lost"]["cache.slots"] == "4"
