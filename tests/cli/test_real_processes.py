"""The commands as a shell starts them, with the real engine where one is needed."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from moetune import __version__
from moetune.cli.output import printable
from moetune.demo import demo_model_path
from moetune.engine.emulator import library_path
from moetune.engine.library import plugin_path
from moetune.errors import ExitCode

Start = Callable[..., "subprocess.Popen[bytes]"]
LIMIT_S = 300
needs_engine = pytest.mark.skipif(
    not (library_path().is_file() and plugin_path().is_file()), reason="the native libraries are not built"
)


def finish(process: "subprocess.Popen[bytes]", piped: bytes = b"") -> tuple[int, str, str]:
    out, err = process.communicate(piped, timeout=LIMIT_S)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, (out or b"").decode(), err.decode()


def test_the_version_is_the_packages(start: Start) -> None:
    """--version prints one line."""
    assert finish(start("--version"))[:2] == (0, f"moetune {__version__}\n")


def test_moetune_alone_shows_the_help(start: Start) -> None:
    """Every command is named."""
    code, out, _ = finish(start())
    assert code == 0
    assert all(f"moetune {name}" in out for name in ("probe", "search", "run", "study", "trace"))


def test_an_error_is_plain_text_on_standard_error(start: Start) -> None:
    """No colour, no box, no traceback, and the documented exit code."""
    code, out, err = finish(start("run", "/nowhere/model.gguf", "-p", "hi", NO_COLOR="1"))
    assert (code, out) == (ExitCode.MODEL, "")
    assert printable(err, keep="\n") == err
    assert err.startswith("error: ")


def test_probe_prints_the_machine_for_programs(start: Start) -> None:
    """JSON and YAML hold the same machine, with its fingerprint."""
    machines = [
        load(finish(start("probe", "--no-measure", "--format", name))[1])
        for name, load in (("json", json.loads), ("yaml", yaml.safe_load))
    ]
    assert machines[0]["fingerprint"] == machines[1]["fingerprint"]
    assert machines[0]["cpu"] == machines[1]["cpu"]


def test_a_reader_that_has_enough_is_no_error(start: Start) -> None:
    """`moetune probe | head` ends quietly with 0."""
    process = start("probe", "--no-measure", "--format", "json")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert finish(process)[::2] == (0, "")


@needs_engine
def test_a_piped_prompt_is_answered_by_the_real_engine(start: Start, model_file: Path) -> None:
    """Text to standard output, its speed to standard error."""
    code, out, err = finish(start("run", str(model_file), "--max-tokens", "5", "--ctx", "256"), b"The fox")
    assert code == 0, err
    assert out
    assert "reply 5 tokens" in err


@needs_engine
def test_a_search_is_remembered_and_used(start: Start, model_file: Path, mine: str, folders: Path) -> None:
    """Probe, search and run, end to end on the CPU: the saved profile is the one that runs."""
    flags = ["--workload", mine, "--ctx", "256"]
    code, out, err = finish(
        start("search", str(model_file), *flags, "--trials", "1", "--rounds", "4", "--device", "none")
    )
    assert code == 0, err
    assert "stock, all on the CPU" in out
    assert f"moetune run {model_file}" in out
    (saved,) = (folders / "config").rglob("*.yaml")
    assert str(saved) in out
    code, _, err = finish(start("run", str(model_file), "-p", "The fox", "--max-tokens", "5"))
    assert code == 0, err
    assert ": mine, context 256" in err
    code, out, err = finish(
        start(
            "search", str(model_file), *flags, "--trials", "1", "--rounds", "4", "--device", "none", "--format", "json"
        )
    )
    assert (code, json.loads(out)["saved"]) == (0, str(saved)), err
    assert "stock, all on the CPU" in err


def until_the_first_trial(process: "subprocess.Popen[bytes]", phase: str = "baselines") -> None:
    """Wait for the first finished trial of a part of the search."""
    assert process.stderr is not None
    heard = b""
    while f"{phase} [".encode() not in heard:
        line = process.stderr.readline()
        assert line, heard.decode()
        heard += line


def busy_engine(search: int) -> psutil.Process:
    """The engine process of a search, seen to load or compute: not idle between two trials, nor on its way out."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for engine in psutil.Process(search).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                before = sum(engine.cpu_times()[:2])
                time.sleep(0.1)
                if sum(engine.cpu_times()[:2]) - before >= 0.05:
                    return engine
    raise AssertionError("no engine was busy")


@needs_engine
def test_an_interrupted_search_goes_on_where_it_was(start: Start, slow_model: Path, slow: str, folders: Path) -> None:
    """Ctrl-C exits with 130, saves no profile, and the same command resumes."""
    arguments = [
        "search",
        str(slow_model),
        "--workload",
        slow,
        "--ctx",
        "1024",
        "--trials",
        "2",
        "--rounds",
        "4",
        "--device",
        "none",
    ]
    process = start(*arguments)
    until_the_first_trial(process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, _ = finish(process)
    assert code == ExitCode.INTERRUPTED
    assert "same command goes on" in out
    assert list((folders / "config").rglob("*.yaml")) == []
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    assert "Resuming" in err


@needs_engine
def test_a_second_search_on_the_same_study_is_refused(start: Start, slow_model: Path, slow: str) -> None:
    """The second says that the first is running and leaves it alone; the first goes on."""
    arguments = [
        "search",
        str(slow_model),
        "--workload",
        slow,
        "--ctx",
        "1024",
        "--trials",
        "1",
        "--rounds",
        "4",
        "--device",
        "none",
    ]
    first = start(*arguments)
    until_the_first_trial(first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        code, out, err = finish(start(*arguments))
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert (code, out) == (ExitCode.BUSY, "")
    assert "error: Another search is running" in err
    assert finish(first)[0] == 0


@needs_engine
def test_a_killed_search_resumes_with_every_finished_trial(start: Start, slow_model: Path, slow: str) -> None:
    """kill -9 of the whole search loses the trial that ran, nothing else, and the engine process dies with it."""
    arguments = [
        "search",
        str(slow_model),
        "--workload",
        slow,
        "--ctx",
        "1024",
        "--trials",
        "4",
        "--rounds",
        "4",
        "--device",
        "none",
    ]
    process = start(*arguments)
    until_the_first_trial(process)
    (engine,) = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=LIMIT_S)
    assert psutil.wait_procs([engine], timeout=30)[1] == []
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    assert "Resuming" in err


@needs_engine
def test_a_killed_engine_costs_its_trial_only(start: Start, slow_model: Path, slow: str) -> None:
    """kill -9 of the worker in a trial is a failed trial; the search goes on to its verdict."""
    arguments = [
        "search",
        str(slow_model),
        "--workload",
        slow,
        "--ctx",
        "1024",
        "--trials",
        "4",
        "--rounds",
        "4",
        "--device",
        "none",
        "--kv",
        "f16",
    ]
    process = start(*arguments)
    until_the_first_trial(process, "trials")
    busy_engine(process.pid).kill()
    code, out, err = finish(process)
    assert code == 0, err
    assert "turn s" in out
    assert err.count("SIGKILL") == 1


@needs_engine
def test_the_cache_wins_on_an_emulated_machine(start: Start, folders: Path) -> None:
    """The main job: a proven win over stock llama.cpp's best layer offload, saved, applied, and marked emulated."""
    machine = ["--emulate", "desktop,vram_mib=8"]
    model = str(demo_model_path())
    code, out, err = finish(start("search", model, *machine, "--ctx", "1024", "--trials", "6", "--rounds", "4"))
    assert code == 0, err
    assert "stock, best layer offload" in out
    assert "Emulated:" in out
    (saved,) = (folders / "config").rglob("*.yaml")
    assert yaml.safe_load(saved.read_text())["emulated"] == "desktop,vram_mib=8"
    code, text, err = finish(start("run", model, *machine, "-p", "import os", "--max-tokens", "16"))
    assert code == 0, err
    assert text
    assert "(emulated)" in err


@needs_engine
def test_a_fast_tier_too_small_for_anything_leaves_the_cpu(start: Start, slow_model: Path, mine: str) -> None:
    """Nothing fits on the device: the CPU is measured and runs, and the table says why the rest failed."""
    machine = ["--emulate", "desktop,vram_mib=1"]
    code, out, err = finish(
        start("search", str(slow_model), *machine, "--workload", mine, "--ctx", "256", "--trials", "1", "--rounds", "4")
    )
    assert code == 0, err
    assert "Nothing beat stock, all on the CPU" in " ".join(out.split())
    assert "out of memory" in out
    code, text, err = finish(start("run", str(slow_model), *machine, "-p", "The fox", "--max-tokens", "4"))
    assert code == 0, err
    assert text


@needs_engine
def test_damaged_weights_are_named(start: Start, slow_model: Path, tmp_path: Path) -> None:
    """A file whose header is sound and whose weights are not numbers gives an error, not silence."""
    damaged = tmp_path / "damaged.gguf"
    raw = bytearray(slow_model.read_bytes())
    raw[len(raw) // 2 :] = b"\xff" * (len(raw) - len(raw) // 2)
    damaged.write_bytes(raw)
    code, out, err = finish(start("run", str(damaged), "-p", "The fox", "--max-tokens", "4", "--ctx", "256"))
    assert (code, out) == (ExitCode.ENGINE, "")
    assert "not a number" in err
