"""benchmarks/gpu.sh end to end on the emulated accelerator: everything but the GPU itself."""

import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from sdist import llama_cpp_source

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
SHAPE = "--layers 4 --embd 256 --heads 4 --head-dim 64 --kv-heads 2 --ff 256 --vocab 2048"
EFFORT = "--prompt-tokens 48 --prompts 1 --warmup 24 --tokens 32 --positions 8 --stay 16 --threads 1 --rounds 2"
# A quarter of the shape's 54 MiB of experts.
BUDGET_GIB = 0.0132


def gpu_sh(command: str, options: Sequence[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Run the script; the emulator is unthrottled, since nothing here is about speed."""
    ours = ("HOTCACHE_", "EMU_", "GGML_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        [str(SCRIPT), command, "--work", str(work), *options],
        capture_output=True,
        text=True,
        env={**clean, "EMU_VRAM_MIB": "200"},
        timeout=1800,
    )


@pytest.fixture(scope="module")
def work(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with everything built and a small model; llama.cpp itself is the stock build's."""
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--llama-cpp", str(llama_cpp_source()), "--llama-lib", str(programs), "--device", "EMU0"]
    for command, more in (("build", options), ("model", [*SHAPE.split(), *EFFORT.split()])):
        done = gpu_sh(command, more, folder)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return folder


def test_rehearsal_measures_all_arms_and_reports(work: Path, tmp_path: Path) -> None:
    """Three arms in two rounds, equal VRAM, logits beside stock's, and a report that says it is emulated."""
    done = gpu_sh("measure", ["--budget", str(BUDGET_GIB), *EFFORT.split()], work)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    again = gpu_sh("measure", ["--budget", str(BUDGET_GIB), *EFFORT.split()], work)
    assert "measuring" in done.stdout
    assert "measuring" not in again.stdout
    done = gpu_sh("report", ["--results", str(tmp_path)], work)
    assert done.returncode == 0, done.stderr
    assert "EMULATED" in done.stdout
    report = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    (budget,) = report["budgets"]
    assert {arm: len(runs) for arm, runs in budget["arms"].items()} == {"ram": 2, "offload": 2, "cache": 2}
    assert all(len(run["reply_s"]) == 32 for runs in budget["arms"].values() for run in runs)
    (figures,) = report["figures"]
    assert figures["resident"] == pytest.approx(0.25, abs=0.02)
    arms = figures["arms"]
    assert arms["offload"]["vram_bytes"] <= arms["cache"]["vram_bytes"] * 1.01
    assert arms["cache"]["vram_bytes"] > arms["ram"]["vram_bytes"]
    assert arms["cache"]["hit_rate"] > figures["resident"]
    # The emulated accelerator computes as the CPU does, to the last bit.
    assert figures["logits"]["cache"]["identical"] == 8


def test_model_routes_as_asked(work: Path) -> None:
    """Most activations go to the busiest fifth, and topics favour different experts."""
    routing = json.loads((work / "routing.json").read_text())
    assert routing["busiest_fifth"] == pytest.approx(0.85, abs=0.05)
    assert routing["carried_over"] < routing["busiest_fifth_within_topic"] - 0.03


@pytest.mark.parametrize("quant", ["q4_0", "q4_K", "q8_0"])
def test_weights_are_what_the_plan_says(quant: str, work: Path, tmp_path: Path) -> None:
    """Read by another reader of the format, weights have mean zero and the deviation that keeps signals level."""
    path = tmp_path / "model.gguf"
    sizes = SHAPE.split()[2:]
    command = [str(work / "programs" / "make_model"), "--out", str(path), "--layers", "1", "--quant", quant, *sizes]
    written = set()
    for threads in ("1", "3"):
        subprocess.run([*command, "--threads", threads], check=True, capture_output=True)
        written.add(path.read_bytes())
    assert len(written) == 1
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    weights = dequantize(tensors["blk.0.ffn_up_exps.weight"].data, tensors["blk.0.ffn_up_exps.weight"].tensor_type)
    assert weights.shape == (128, 256, 256)
    assert weights.std() == pytest.approx(1 / np.sqrt(256), rel=0.01)
    assert abs(weights.mean()) < 0.001 * weights.std()


def test_wrong_use_is_said_in_a_line(work: Path, tmp_path: Path) -> None:
    """Unknown options, a missing build and impossible sizes end with a reason and no trace of a model."""
    for command, options, reason in (
        ("measure", ["--bugdet", "4"], "--bugdet: no such option"),
        ("model", [], "run gpu.sh build"),
        ("measure", [], "run gpu.sh model"),
        ("fly", [], "fly: no such command"),
    ):
        done = gpu_sh(command, options, tmp_path / "nothing")
        assert done.returncode == 1
        assert reason in done.stderr
    make = [str(work / "programs" / "make_model"), "--out", str(tmp_path / "m.gguf")]
    done = subprocess.run([*make, "--ff", "100"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "--ff must be a multiple of 32" in done.stderr
    assert not list(tmp_path.glob("m.gguf*"))


def test_archive_holds_what_the_build_reads(tmp_path: Path) -> None:
    """The archive fits where such archives must fit and has the sources of CUDA, the plugin and the benchmark."""
    archive = tmp_path / "gpu.tar.gz"
    done = gpu_sh("pack", ["--llama-cpp", str(llama_cpp_source()), "--out", str(archive)], tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    expected = ["benchmarks/gpu.sh", "benchmarks/gpu/measure.cpp", "engine/native/hotcache.cpp", "sources.txt"]
    expected += ["llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu", "llama.cpp/src/llama.cpp", "llama.cpp/LICENSE"]
    assert {f"moetune-gpu/{name}" for name in expected} <= names
