"""What `moetune export` writes, run with a stock llama-server: it says what `moetune run` says."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from stock_programs import LOG_TRIES, free_port, started, summary

from moetune.demo import demo_model_path
from moetune.engine.config import CacheKnobs, EngineConfig, KvType, LoadMode, Policy
from moetune.engine.emulator import library_path
from moetune.engine.library import engine_version
from moetune.engine.model import read_model
from moetune.errors import ExitCode
from moetune.profiles.schema import read_profile
from moetune.profiles.store import ProfileStore

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "profiles" / "goldens" / "profile-v3.yaml"
PROMPT = "def read_lines(path):"
CACHE = CacheKnobs(slots=8, promotions=4, policy=Policy.LRU, min_sightings=1)
ON_CPU = EngineConfig(n_ctx=512, n_threads=2, n_ubatch=256, type_k=KvType.Q8_0, device="CPU", cache=CACHE)
EMULATED = EngineConfig(
    n_ctx=512,
    n_threads=1,
    n_threads_batch=2,
    device="EMU0",
    gpu_layers=5,
    ram_expert_layers=4,
    type_k=KvType.Q8_0,
    type_v=KvType.Q8_0,
    load_mode=LoadMode.NONE,
    cache=CACHE,
)
TIERS = {"cpu": (ON_CPU, None), "emulated": (EMULATED, "desktop,vram_mib=24")}
# The fingerprint of a machine with the emulated device, which would stay in this process.
SEEN = (
    "import sys; from moetune.cli.machine import emulated_machine, seen_machine; "
    "print(seen_machine(None, emulated_machine(sys.argv[1] or None)).fingerprint)"
)


@dataclass(frozen=True)
class Case:
    """Two profiles of one model under an odd name: `chat` with the cache, `code` with what the cache had to beat."""

    model: Path
    folder: Path
    emulate: tuple[str, ...]

    def moetune(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "moetune", *arguments, *self.emulate],
            capture_output=True,
            text=True,
            env=os.environ | {"MOETUNE_CONFIG_DIR": str(self.folder), "MOETUNE_STATE_DIR": str(self.folder)},
            timeout=600,
        )
        assert done.returncode == ExitCode.OK, done.stderr
        return done.stdout

    def runs(self, workload: str) -> str:
        """What `moetune run` says."""
        flags = ["--raw", "--max-tokens", "64", "--workload", workload]
        return self.moetune("run", str(self.model), "-p", PROMPT, *flags).rstrip("\n")

    def export(self, programs: Path, *flags: str) -> str:
        server = str(programs / "llama-server")
        return self.moetune("export", str(self.model), "--workload", "chat", "--server", server, *flags)


@pytest.fixture(scope="module", params=TIERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config, emulated = TIERS[request.param]
    folder = tmp_path_factory.mktemp("exported")
    model = folder / 'a "demo" model\'s $HOME 100%.gguf'
    model.symlink_to(demo_model_path())
    # ggml also loads backends that lie in the current folder under the name of one that it knows.
    if emulated:
        (folder / "libggml-vulkan.so").symlink_to(library_path())
    seen = subprocess.run([sys.executable, "-c", SEEN, emulated or ""], capture_output=True, text=True, check=True)
    beaten = replace(config, cache=None, device=None if config.device == "CPU" else config.device, type_k=KvType.F16)
    cached = replace(
        read_profile(GOLDEN),
        model_fingerprint=read_model(model).fingerprint,
        machine_fingerprint=seen.stdout.strip(),
        engine_version=engine_version(),
        emulated=emulated,
        n_ctx=512,
        config=config,
        baseline_config=beaten,
    )
    store = ProfileStore(folder / "profiles")
    store.save(cached)
    store.save(replace(cached, workload="code", config=beaten))
    return Case(model, folder, ("--emulate", emulated) if emulated else ())


def answer(command: str, port: int, folder: Path) -> tuple[str, str]:
    """What the server that the command starts says, and its log."""
    with started(["sh", "-c", command], port, {}, folder) as running:
        text = running.complete(PROMPT, 64)
    return text, running.log


def cached_answer(command: str, port: int, folder: Path) -> tuple[str, str]:
    """The same with a log that has its end."""
    for _ in range(LOG_TRIES):
        text, log = answer(command, port, folder)
        if "hotcache: " in log:
            break
    return text, log


def test_the_command_says_what_run_says(case: Case, programs: Path) -> None:
    """To the letter, through the cache, under a model's name with everything that shells dislike."""
    port = free_port()
    # Flags after -- come last.
    start = case.export(programs).rstrip("\n") + f" --port {port} --verbose"
    text, log = cached_answer(f"exec {start}", port, case.folder)
    assert text == case.runs("chat")
    assert len(text) > 64
    found = summary(log)
    assert found.layers == 4
    assert found.hits > 0


def test_the_environment_file_says_what_run_says(case: Case, programs: Path) -> None:
    """llama-server with no flag but its port."""
    port, file = free_port(), case.folder / "llama.env"
    file.write_text(case.export(programs, "--as", "env"))
    command = f"set -a; . {shlex.quote(str(file))}; exec {shlex.quote(str(programs / 'llama-server'))} --port {port} -v"
    text, log = cached_answer(command, port, case.folder)
    assert text == case.runs("chat")
    assert summary(log).hits > 0


def test_stock_says_what_the_baseline_says(case: Case, programs: Path) -> None:
    """And has never heard of the plugin."""
    port = free_port()
    start = case.export(programs, "--stock").rstrip("\n") + f" --port {port} --verbose"
    text, log = answer(f"exec {start}", port, case.folder)
    assert text == case.runs("code")
    assert "hotcache" not in log.lower()
    assert "HOTCACHE" not in start
