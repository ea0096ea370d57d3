"""The plugin in somebody else's program: stock llama.cpp, unmodified, with nothing but environment variables."""

import json
import re
from pathlib import Path

import pytest
from stock_programs import CACHE, LOG_TRIES, PLUGIN, bench, perplexity, server, summary

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic
from moetune.engine.emulator import library_path

pytestmark = pytest.mark.slow

# Every way stock llama.cpp has to keep routed experts in RAM, and of how many of the demo model's four layers.
PLACEMENTS = {
    "cmoe": (["-cmoe"], 4),
    "ncmoe": (["-ncmoe", "2"], 2),
    "ot-cpu": (["-ot", "exps=CPU"], 4),
    "ot-named": (["-ot", "exps=HOTCACHE"], 4),
}
PROMPT = "def read_lines(path):"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(Path(json.__file__).read_text())
    return path


@pytest.mark.parametrize("which", ["demo", "gpt-oss"])
def test_perplexity_is_the_same_to_the_last_digit(which: str, programs: Path, text: Path, tmp_path: Path) -> None:
    """The cache computes in stock llama-perplexity what stock llama-perplexity computes without it."""
    model = demo_model_path()
    if which != "demo":
        model = tmp_path / "model.gguf"
        write_synthetic(model, SyntheticSpec(arch=which, layers=4, experts=16, used=4, embd=256, ff=128))
    stock, _ = perplexity(programs, model, text, ["-cmoe"], {})
    cached, log = perplexity(programs, model, text, ["-cmoe"], PLUGIN | CACHE)
    assert summary(log).hits > 100
    assert cached == stock


@pytest.mark.parametrize(("flags", "layers"), PLACEMENTS.values(), ids=PLACEMENTS)
def test_every_placement_flag_hands_its_experts_over(
    flags: list[str], layers: int, programs: Path, text: Path, tmp_path: Path
) -> None:
    """Beside an accelerator, exactly the layers that a flag keeps in RAM are cached, and perplexity stays."""
    # ggml also loads backends that lie in the current folder under the name of one that it knows.
    (tmp_path / "libggml-vulkan.so").symlink_to(library_path())
    accelerator = {"EMU_VRAM_MIB": "24"}
    device = ["--device", "EMU0"]
    without = ["-ot", "exps=CPU"] if "exps=HOTCACHE" in flags else flags
    stock, log = perplexity(programs, demo_model_path(), text, [*device, *without], accelerator, tmp_path)
    assert re.search(r"EMU0 model buffer size", log)
    settings = accelerator | PLUGIN | CACHE | {"HOTCACHE_DEVICE": "EMU0"}
    cached, log = perplexity(programs, demo_model_path(), text, [*device, *flags], settings, tmp_path)
    assert summary(log).layers == layers
    assert summary(log).hits > 100
    assert cached == stock


@pytest.mark.parametrize("flags", [[], ["-ncmoe", "2"], ["-ot", "exps=CPU"], ["-ot", "exps=HOTCACHE"]])
def test_bench_runs_with_the_plugin(flags: list[str], programs: Path) -> None:
    """llama-bench loads the plugin through GGML_BACKEND_PATH and reports both speeds."""
    for _ in range(LOG_TRIES):
        kinds, log = bench(programs, demo_model_path(), flags, PLUGIN | CACHE)
        assert kinds == {True, False}
        if "hotcache: " in log:
            break
    assert summary(log).hits + summary(log).misses > 0


@pytest.mark.parametrize("flags", [flags for flags, _ in PLACEMENTS.values()], ids=PLACEMENTS)
def test_server_answers_the_same(flags: list[str], programs: Path, tmp_path: Path) -> None:
    """llama-server completes a prompt with the cache as it does without."""
    without = ["-ot", "exps=CPU"] if "exps=HOTCACHE" in flags else flags
    with server(programs, demo_model_path(), without, {}, tmp_path) as plain:
        expected = plain.complete(PROMPT, 64)
    with server(programs, demo_model_path(), flags, PLUGIN | CACHE, tmp_path) as cached:
        assert cached.complete(PROMPT, 64) == expected
    assert len(expected) > 64
    assert summary(cached.log).hits > 50


def test_server_takes_one_config_file(programs: Path, tmp_path: Path) -> None:
    """A file sets the cache; a variable wins over it; what is wrong in it is said with its line."""
    config = tmp_path / "hotcache.conf"
    config.write_text("# for the demo model\ndevice = CPU\nslots = 0\ninterval = often\n")
    settings = PLUGIN | {"HOTCACHE_CONFIG": str(config), "HOTCACHE_SLOTS": "8"}
    with server(programs, demo_model_path(), ["-cmoe"], settings, tmp_path) as running:
        running.complete(PROMPT, 64)
    assert summary(running.log).hits > 0
    assert f"{config}:4: interval=often: must be a number" in running.log
