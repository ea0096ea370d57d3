"""A running `moetune serve`, and what one client alone would be told by the same configuration."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import openai
from prometheus_client.parser import text_string_to_metric_families

from moetune.demo import demo_model_path
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.emulator import parse_emulated
from moetune.engine.generation import GenerationRequest, TextChunk
from moetune.engine.library import engine_version
from moetune.engine.model import read_model
from moetune.engine.runner import EngineRunner
from moetune.profiles.schema import read_profile
from moetune.profiles.store import ProfileStore

GOLDEN = Path(__file__).parents[1] / "profiles" / "goldens" / "profile-v1.yaml"
LIMIT_S = 120.0
EMULATED = "desktop,vram_mib=12"
ON_CPU = EngineConfig(n_ctx=512, n_threads=1, n_ubatch=64, repack=False, device="CPU", cache=CacheKnobs(slots=8))
ON_DEVICE = replace(ON_CPU, device="EMU0", gpu_layers=5, ram_expert_layers=4, cache=CacheKnobs(slots=12))
PROMPTS = (
    "def read_lines(path):\n",
    "import os\nimport sys\n",
    "class Node:\n    def __init__(self",
    "NAME\n       ls - list",
    "for i in range(",
    "SYNOPSIS\n       grep",
    "def main():\n    parser =",
    "The file is",
)


@dataclass(frozen=True)
class Server:
    """url: without a path. config: what runs in it."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    config: EngineConfig
    emulate: str | None
    key: str | None = None

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key or "none", max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0)

    def metrics(self) -> dict[str, float]:
        """By name and labels, as `name` or `name{label}` with the labels' values in order."""
        request = urllib.request.Request(f"{self.url}/metrics")  # noqa: S310
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
        return {name(s.name, list(s.labels.values())): s.value for s in samples}

    def settled(self) -> dict[str, float]:
        """The figures once nothing runs or waits any more."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            figures = self.metrics()
            if figures.get("moetune_sequences_running") == figures.get("moetune_requests_waiting") == 0:
                return figures
            time.sleep(0.1)
        raise AssertionError(f"requests still run: {figures}")

    def alone(self, prompts: tuple[str, ...], max_tokens: int, *, chat: bool = False) -> dict[str, str]:
        """Greedy texts of the same configuration, one prompt after the other, without any server."""
        emulated = parse_emulated(self.emulate) if self.emulate else None
        with EngineRunner(demo_model_path(), emulated) as runner:
            return {prompt: generate(runner, self.config, prompt, max_tokens, chat=chat) for prompt in prompts}


def name(metric: str, labels: list[str]) -> str:
    return f"{metric}{{{','.join(labels)}}}" if labels else metric


def generate(runner: EngineRunner, config: EngineConfig, prompt: str, max_tokens: int, *, chat: bool) -> str:
    request = GenerationRequest(prompt, max_tokens, chat=chat)
    items = runner.generate(config, request, time_limit_s=LIMIT_S)
    return "".join(item.text for item in items if isinstance(item, TextChunk))


def machine_fingerprint(emulate: str | None) -> str:
    """In a process of its own: an emulated device, once registered, stays."""
    flags = ["--emulate", emulate] if emulate else []
    probe = [sys.executable, "-m", "moetune", "probe", "--no-measure", "--format", "json", *flags]
    return str(json.loads(subprocess.run(probe, capture_output=True, check=True).stdout)["fingerprint"])


def save_profile(folder: Path, config: EngineConfig, emulate: str | None) -> None:
    """As a search of the demo model would have left it."""
    profile = replace(
        read_profile(GOLDEN),
        model_fingerprint=read_model(demo_model_path()).fingerprint,
        machine_fingerprint=machine_fingerprint(emulate),
        engine_version=engine_version(),
        n_ctx=config.n_ctx,
        config=config,
        emulated=emulate,
    )
    ProfileStore(folder).save(profile)


@contextlib.contextmanager
def serving(
    folder: Path,
    *flags: str,
    config: EngineConfig = ON_CPU,
    emulate: str | None = None,
    key: str | None = None,
    ignoring: signal.Signals | None = None,
) -> Iterator[Server]:
    """`moetune serve` of the demo model with a saved profile, until the block ends.

    It leads a process group, as under a shell. ignoring: a signal that it is started with as ignored.
    """
    save_profile(folder / "config" / "profiles", config, emulate)
    environment = os.environ | {
        "MOETUNE_CONFIG_DIR": str(folder / "config"),
        "MOETUNE_STATE_DIR": str(folder / "state"),
    }
    if key:
        environment["MOETUNE_API_KEY"] = key
    machine = ["--emulate", emulate] if emulate else []
    command = [sys.executable, "-m", "moetune", "serve", str(demo_model_path()), "--port", "0", *machine, *flags]
    log = folder / "log.txt"
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command,
            stdout=sink,
            stderr=sink,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: started_with(ignoring),  # noqa: PLW1509
        ) as process,
    ):
        try:
            yield Server(listening(process, log), process, log, config, emulate, key)
        finally:
            process.terminate()
    assert "Traceback" not in log.read_text()


def started_with(ignored: signal.Signals | None) -> None:
    """As a terminal's shell starts programs, and with one signal ignored, as scripts start background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if ignored is not None:
        signal.signal(ignored, signal.SIG_IGN)


def listening(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The URL it says it listens on."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"listening on (\S+)/v1", log.read_text()):
            return found[1]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(log.read_text())
