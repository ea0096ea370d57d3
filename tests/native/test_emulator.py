"""The emulated accelerator: arithmetic is the CPU's, memory ends, throttles hold, threads do not race."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.emulator import library_path, parse_emulated

HERE = Path(__file__).parent
EMULATOR_SOURCES = sorted((HERE.parents[1] / "engine" / "native" / "emulator").glob("*.cpp"))
# Gentle, so that the scenarios overlap transfers, arithmetic and waiting without lasting long.
THROTTLED = {
    "EMU_VRAM_MIB": "16",
    "EMU_LINK_GBPS": "0.25",
    "EMU_DEVICE_GBPS": "2.5",
    "EMU_HOST_GBPS": "0.15",
    "EMU_LAUNCH_US": "5",
}
LOAD = """
import ctypes, sys
from llama_cpp import llama_cpp
lib = llama_cpp._lib
lib.ggml_backend_load.argtypes, lib.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
lib.ggml_backend_dev_by_name.restype = ctypes.c_void_p
lib.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
lib.ggml_backend_dev_description.restype = ctypes.c_char_p
if not lib.ggml_backend_load(sys.argv[1].encode()):
    sys.exit(3)
for name in (b"EMU0", b"EMUHOST"):
    print(lib.ggml_backend_dev_description(ctypes.c_void_p(lib.ggml_backend_dev_by_name(name))).decode())
"""


def _environment(**changes: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("EMU_")} | changes


def _finished(command: Sequence[str | Path], **changes: str) -> subprocess.CompletedProcess[str]:
    environment = _environment(**changes)
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)


def _load_in_another_process(**changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD, str(library_path())]
    return _finished(command, **changes)


def _llama_cpp() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


# ---- the native programs


def _build(folder: Path, sources: Sequence[Path], libraries: Sequence[Path] = (), flags: Sequence[str] = ()) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    include, ggml = _llama_cpp().parent / "include", _llama_cpp() / "lib"

    def compile_one(source: Path) -> Path:
        built = folder / f"{source.stem}.o"
        warnings = ["-Wall", "-Wextra", "-Werror"]
        command = [compiler, "-std=c++17", *warnings, "-pthread", *flags, f"-I{include}"]
        subprocess.run([*command, "-c", str(source), "-o", str(built)], check=True)
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(built) for built in pool.map(compile_one, sources)]
    program = folder / "program"
    linked = [*map(str, libraries), "-l:libggml.so.0", "-l:libggml-base.so.0", f"-L{ggml}", f"-Wl,-rpath,{ggml}"]
    subprocess.run([compiler, "-pthread", *flags, *objects, "-o", str(program), *linked], check=True)
    return program


def _run(program: Path, **changes: str) -> str:
    # ggml's own OpenMP workers synchronise in ways that a sanitizer cannot see.
    done = _finished([program], OMP_NUM_THREADS="1", **changes)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hard_use_gives_the_cpus_bits(tmp_path: Path) -> None:
    """Queued graphs whose memory is reused, shared links, events and a full memory all leave results exact."""
    program = _build(tmp_path, [HERE / "emulator_stress.cpp"], [library_path()])
    for throttles in (THROTTLED, {"EMU_VRAM_MIB": "16"}):
        assert "all scenarios passed" in _run(program, **throttles)


def test_throttles_take_the_time_they_model(tmp_path: Path) -> None:
    """Transfers, launches, device memory and the slow host take what they are told to, and submitting costs little."""
    _run(_build(tmp_path, [HERE / "emulator_timing.cpp"], [library_path()]))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_hard_use_is_clean_under(sanitizer: str, tmp_path: Path) -> None:
    """No data race, no use after free, no overflow and no undefined behaviour in any scenario."""
    flags = ["-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = _build(tmp_path, [*EMULATOR_SOURCES, HERE / "emulator_stress.cpp"], flags=flags)
    assert "all scenarios passed" in _run(program, **THROTTLED)


# ---- registration


def test_descriptions_name_the_throttles() -> None:
    """Whoever lists devices sees that these are emulated and what they are."""
    loaded = _load_in_another_process(**parse_emulated("server,scale=0.01").environment())
    assert loaded.stdout.splitlines() == [
        "emulated accelerator (3.6 GB/s device, 0.12 GB/s link, 8 us transfer, 40 us launch)",
        "emulated slow host (3 GB/s for expert products)",
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EMU_VRAM_MIB", "0"),
        ("EMU_VRAM_MIB", "1.5"),
        ("EMU_LINK_GBPS", "fast"),
        ("EMU_DEVICE_GBPS", "-1"),
        ("EMU_HOST_GBPS", "nan"),
        ("EMU_LAUNCH_US", ""),
        ("EMU_THREADS", "2x"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str) -> None:
    """A machine nobody can mean is not registered, and one line says which variable is wrong."""
    loaded = _load_in_another_process(**{variable: value})
    assert loaded.returncode == 3
    complaints = [line for line in loaded.stderr.splitlines() if line.startswith("emulated accelerator:")]
    assert len(complaints) == 1
    assert f"{variable}='{value}'" in complaints[0]


def test_another_ggml_is_refused(tmp_path: Path) -> None:
    """A ggml whose tables this library does not know is named in one line instead of crashing."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source, imposter = tmp_path / "version.cpp", tmp_path / "libversion.so"
    source.write_text('extern "C" const char * ggml_version() { return "9.9.9"; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(imposter)], check=True)
    loaded = _load_in_another_process(LD_PRELOAD=str(imposter))
    assert loaded.returncode == 3
    assert "this program carries ggml 9.9.9" in loaded.stderr


# ---- under stock llama.cpp


@dataclass(frozen=True)
class Decoded:
    """Logits `[1 + decoded, n_vocab]` and the emulator's counters after the prompt and at the end."""

    logits: np.ndarray
    after_prompt: dict[str, int]
    at_end: dict[str, int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts: 3 layers of 16 experts, 4 used, Q4_0."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_synthetic(path, SyntheticSpec(layers=3, embd=128, ff=64))
    return path


def _decode(model: Path, folder: Path, *options: str, **changes: str) -> Decoded:
    logits = folder / "logits.npy"
    command = [sys.executable, str(HERE / "emulator_decode.py"), str(model), str(logits), *options]
    done = _finished(command, **changes)
    assert done.returncode == 0, done.stderr
    after_prompt, at_end = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    return Decoded(np.load(logits), after_prompt, at_end)


@pytest.fixture(scope="module")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    """The model on the CPU, without the emulator."""
    return _decode(model, tmp_path_factory.mktemp("stock"))


def _emulated(model: Path, folder: Path, *options: str, **changes: str) -> Decoded:
    return _decode(model, folder, "--emulator", str(library_path()), *options, **(THROTTLED | changes))


def test_all_layers_on_the_accelerator_give_the_cpus_logits(model: Path, stock: Decoded, tmp_path: Path) -> None:
    """Stock llama.cpp offloads every layer, and no bit changes."""
    emulated = _emulated(model, tmp_path, "--gpu-layers", "99")
    assert np.array_equal(emulated.logits, stock.logits)
    assert emulated.at_end["launches"] > 0
    assert emulated.at_end["host_expert_bytes"] == 0


def test_experts_in_ram_run_on_the_slow_host(model: Path, stock: Decoded, tmp_path: Path) -> None:
    """Decoding charges the slow host for the routed experts; a long prompt streams them to the accelerator instead."""
    emulated = _emulated(model, tmp_path, "--gpu-layers", "99", "--experts-in-ram")
    assert np.array_equal(emulated.logits, stock.logits)
    # One expert is gate, up and down of 128 x 64 values, 18 bytes for 32 of them in Q4_0. The last prompt token's
    # layer is cut to one row before its FFN, so that llama.cpp does not stream the last layer for it.
    expert_bytes = 3 * 128 * 64 // 32 * 18
    routed_bytes_per_token = 3 * 4 * expert_bytes
    decoded_bytes = emulated.at_end["host_expert_bytes"] - emulated.after_prompt["host_expert_bytes"]
    assert decoded_bytes == 8 * routed_bytes_per_token
    assert emulated.after_prompt["host_expert_bytes"] == routed_bytes_per_token // 3
    streamed_layers = 2
    assert emulated.after_prompt["h2d_bytes"] > streamed_layers * 12 * expert_bytes


@pytest.mark.parametrize("repack", [(), ("--repack",)], ids=["plain", "repacked"])
def test_registering_changes_no_result_of_cpu_layers(model: Path, tmp_path: Path, repack: tuple[str, ...]) -> None:
    """With every layer in RAM the slow host takes the experts, in whatever layout the CPU chose for them."""
    without, with_emulator = tmp_path / "without", tmp_path / "with"
    without.mkdir()
    with_emulator.mkdir()
    expected = _decode(model, without, *repack)
    emulated = _emulated(model, with_emulator, *repack)
    assert np.array_equal(emulated.logits, expected.logits)
    assert emulated.at_end["host_expert_bytes"] > 0


def test_a_model_too_large_for_the_memory_is_refused(model: Path, tmp_path: Path) -> None:
    """llama.cpp sees an allocation fail, as on a full card, and gives up cleanly."""
    command = [sys.executable, str(HERE / "emulator_decode.py"), str(model), str(tmp_path / "logits.npy")]
    command += ["--emulator", str(library_path()), "--gpu-layers", "99"]
    done = _finished(command, EMU_VRAM_MIB="1")
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
