"""The plugin in somebody else's program: stock llama.cpp, unmodified, with nothing but environment variables."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.library import plugin_path

pytestmark = pytest.mark.slow

CACHE = {
    "GGML_BACKEND_PATH": str(plugin_path()),
    "HOTCACHE_DEVICE": "CPU",
    "HOTCACHE_SLOTS": "8",
    "HOTCACHE_INTERVAL": "1",
    "HOTCACHE_PROMOTIONS": "4",
    "HOTCACHE_POLICY": "lru",
}


def perplexity(program: Path, model: Path, text: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What llama-perplexity prints as its final estimate, and its log."""
    # Batches below the engine's prefill size, so that the cache and not the plain path computes.
    small_batches = ["-c", "128", "-b", "16", "-ub", "16", "--chunks", "4", "-t", "2", "--no-repack"]
    # Only flags that name a backend make the program load GGML_BACKEND_PATH when its own backends are built in.
    placement = ["-ot", "exps=CPU", "--verbose"]
    command = [str(program / "llama-perplexity"), "-m", str(model), "-f", str(text), *small_batches, *placement]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    match = re.search(r"Final estimate: PPL = (\S+ \S+ \S+)", output)
    assert match, output[-2000:]
    return match[1], output


@pytest.mark.parametrize("which", ["demo", "gpt-oss"])
def test_perplexity_is_the_same_to_the_last_digit(which: str, programs: Path, tmp_path: Path) -> None:
    """The cache computes in stock llama-perplexity what stock llama-perplexity computes without it."""
    model = demo_model_path()
    if which != "demo":
        model = tmp_path / "model.gguf"
        write_synthetic(model, SyntheticSpec(arch=which, layers=4, experts=16, used=4, embd=256, ff=128))
    text = tmp_path / "text.txt"
    text.write_text(Path(json.__file__).read_text())
    stock, _ = perplexity(programs, model, text, {})
    cached, log = perplexity(programs, model, text, CACHE)
    assert int(re.search(r"hotcache: (\d+) hits", log)[1]) > 100
    assert cached == stock


def test_bench_runs_with_the_plugin(programs: Path) -> None:
    """llama-bench loads the plugin through GGML_BACKEND_PATH and reports both speeds."""
    command = [str(programs / "llama-bench"), "-m", str(demo_model_path())]
    command += ["-p", "32", "-n", "16", "-r", "1", "-o", "json", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **CACHE}, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"hotcache: \d+ hits", done.stderr)
    results = json.loads(done.stdout)
    assert {bool(row["n_gen"]) for row in results} == {True, False}
    assert all(row["avg_ts"] > 0 for row in results)
