"""Models to compare on, and the comparison."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic

PROGRAM = Path(__file__).with_name("dump_logits.py")


@dataclass(frozen=True)
class Run:
    """Logits [rows, n_vocab] of one run and what the cache counted (None: it never had slots)."""

    logits: np.ndarray
    counters: dict[str, float] | None


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Path of the demo model, or of a random-weight model of an architecture, written once a session."""
    folder = tmp_path_factory.mktemp("models")

    def path_of(arch: str, quant: str = "Q8_0", **changes: object) -> Path:
        if arch == "demo":
            return demo_model_path()
        name = "-".join([arch, quant, *(f"{k}{v}" for k, v in changes.items())])
        path = folder / f"{name}.gguf"
        if not path.exists():
            shape = {"layers": 4, "experts": 16, "used": 4, "embd": 256, "ff": 128, "skew": 0.9}
            write_synthetic(path, SyntheticSpec(arch=arch, quant=quant, **{**shape, **changes}))
        return path

    return path_of


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run `dump_logits.py` with these arguments; equal arguments run once a session."""
    folder = tmp_path_factory.mktemp("logits")
    done: dict[tuple[str, ...], Run] = {}

    def run_model(model: Path, *arguments: str) -> Run:
        key = (str(model), *arguments)
        if key not in done:
            out = folder / f"{len(done)}.npy"
            command = [sys.executable, str(PROGRAM), str(model), str(out), *arguments]
            process = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert process.returncode == 0, process.stderr[-2000:]
            done[key] = Run(np.load(out), json.loads(process.stdout))
        return done[key]

    return run_model
