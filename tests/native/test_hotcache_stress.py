"""The plugin as a whole with real threads: contexts, promotions and settings at once, under the sanitizers."""

import os
import subprocess
from pathlib import Path

import pytest
from compile import HERE, SOURCES, compile_object, compile_program

SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_concurrent_contexts_compute_what_the_cpu_computes(sanitizer: str, tmp_path: Path) -> None:
    """Three contexts, live settings and an asynchronous accelerator: no race, no leak, no different bit."""
    flags = SANITIZERS[sanitizer]
    # Both libraries export ggml_backend_init; in one program the emulator's needs another name.
    renamed = [*flags, "-Dggml_backend_init=emulator_backend_init", "-Dggml_backend_score=emulator_backend_score"]
    emulator = [
        compile_object(tmp_path, source, flags=renamed) for source in sorted((SOURCES / "emulator").glob("*.cpp"))
    ]
    sources = [HERE / "hotcache_stress.cpp", *sorted((SOURCES / "cache").glob("*.cpp"))]
    sources += sorted((SOURCES / "backend").glob("*.cpp"))
    program = compile_program(tmp_path / "hotcache_stress", [*sources, *emulator], flags=flags)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EMU_VRAM_MIB": "8",
        "EMU_LAUNCH_US": "3",
        "EMU_LINK_GBPS": "2",
        # ggml keeps its registry to the end of the process, and the plugin its registration on purpose.
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    steps = "150" if sanitizer == "plain" else "60"
    done = subprocess.run([program, steps], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
