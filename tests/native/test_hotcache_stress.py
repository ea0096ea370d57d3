"""The plugin as a whole: contexts, promotions, settings, models and faults at once, under the sanitizers."""

import os
import subprocess
from pathlib import Path

import pytest
from compile import HERE, SOURCES, compile_objects, compile_program

SANITIZERS = {
    "plain": [],
    "address": ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-g1", "-fsanitize=thread"],
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_scheduled_contexts_compute_what_the_cpu_computes(sanitizer: str, tmp_path: Path) -> None:
    """Contexts over ggml's scheduler, live settings, an asynchronous and failing accelerator: no race, no use after
    free, no different bit.
    """
    flags = SANITIZERS[sanitizer]
    # Both libraries export ggml_backend_init; in one program the emulator's needs another name.
    renamed = [*flags, "-Dggml_backend_init=emulator_backend_init", "-Dggml_backend_score=emulator_backend_score"]
    emulator = compile_objects(tmp_path, sorted((SOURCES / "emulator").glob("*.cpp")), flags=renamed)
    sources = [HERE / "hotcache_stress.cpp", SOURCES / "hotcache.cpp", *sorted((SOURCES / "cache").glob("*.cpp"))]
    sources += sorted((SOURCES / "backend").glob("*.cpp"))
    program = compile_program(tmp_path / "hotcache_stress", [*sources, *emulator], flags=flags)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EMU_VRAM_MIB": "16",
        "EMU_LAUNCH_US": "3",
        "EMU_LINK_GBPS": "2",
        "GGML_NO_BACKTRACE": "1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    steps = "400" if sanitizer == "plain" else "100"
    done = subprocess.run([program, steps], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "all scenarios passed" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_inputs_are_read_where_they_lie_only_where_nobody_else_reads_them(sanitizer: str, tmp_path: Path) -> None:
    """Copies are left out for a single reader, kept for several, for views and writers, and never read when stale."""
    sources = [HERE / "inputs_test.cpp", *(SOURCES / "backend" / name for name in ("inputs.cpp", "pair_graph.cpp"))]
    program = compile_program(tmp_path / "inputs_test", sources, flags=SANITIZERS[sanitizer])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
