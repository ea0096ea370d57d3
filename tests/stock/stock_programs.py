"""Runs stock llama.cpp programs with settings of the cache in the environment, as anybody would."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from moetune.engine.library import plugin_path

PLUGIN = {
    "GGML_BACKEND_PATH": str(plugin_path()),
    # Programs whose own backends are built in read GGML_BACKEND_PATH only when a flag names a backend. This one names
    # the CPU for no tensor at all.
    "LLAMA_ARG_OVERRIDE_TENSOR": "^$=CPU",
}
CACHE = {
    "HOTCACHE_DEVICE": "CPU",
    "HOTCACHE_SLOTS": "8",
    "HOTCACHE_INTERVAL": "1",
    "HOTCACHE_PROMOTIONS": "4",
    "HOTCACHE_POLICY": "lru",
}
# Stock programs write their log on a thread of its own and lose its last lines when they end first, a few times in a
# hundred runs.
LOG_TRIES = 6


@dataclass(frozen=True)
class Summary:
    """What the cache writes to the program's log when a context ends."""

    hits: int
    misses: int
    layers: int


def summary(log: str) -> Summary:
    """The last summary in a log that has one."""
    found = re.findall(r"hotcache: (\d+) hits, (\d+) misses .* (\d+) layers", log)
    assert found, log[-2000:]
    return Summary(*map(int, found[-1]))


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of this test run without what would set the cache or the emulator, plus `settings`."""
    ours = ("HOTCACHE_", "EMU_", "GGML_", "LLAMA_ARG_")
    return {**{key: value for key, value in os.environ.items() if not key.startswith(ours)}, **settings}


def perplexity(
    program: Path,
    model: Path,
    text: Path,
    flags: Sequence[str],
    settings: Mapping[str, str],
    folder: Path | None = None,
) -> tuple[str, str]:
    """What llama-perplexity prints as its final estimate, and its log; `folder` is where it runs."""
    # Batches below the engine's prefill size, so that the cache and not the plain path computes.
    small_batches = ["-c", "128", "-b", "16", "-ub", "16", "--chunks", "4", "-t", "2", "--no-repack"]
    command = [
        str(program / "llama-perplexity"),
        "-m",
        str(model),
        "-f",
        str(text),
        *small_batches,
        *flags,
        "--verbose",
    ]
    for _ in range(LOG_TRIES):
        done = subprocess.run(
            [*command, *flags], capture_output=True, text=True, env=environment(settings), cwd=folder, timeout=600
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output[-2000:]
        match = re.search(r"Final estimate: PPL = (\S+ \S+ \S+)", output)
        if match and ("GGML_BACKEND_PATH" not in settings or "hotcache: " in output.rpartition("Final estimate")[2]):
            return match[1], output
    raise AssertionError(output[-2000:])


def bench(programs: Path, model: Path, flags: Sequence[str], settings: Mapping[str, str]) -> tuple[set[bool], str]:
    """Which of prompt processing (False) and generation (True) llama-bench gave a speed for, and its log."""
    command = [str(programs / "llama-bench"), "-m", str(model), "-p", "32", "-n", "16", "-r", "1", "-o", "json"]
    done = subprocess.run(
        [*command, *flags, "--verbose"], capture_output=True, text=True, env=environment(settings), timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {bool(row["n_gen"]) for row in json.loads(done.stdout) if row["avg_ts"] > 0}, done.stderr


class Server:
    """A running llama-server. Its log is complete only after `server` has ended."""

    def __init__(self, port: int, log: Path) -> None:
        self._port = port
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def is_ready(self) -> bool:
        try:
            return self._ask("GET", "/health", "")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def complete(self, prompt: str, tokens: int) -> str:
        """The most likely continuation."""
        question = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
        status, answer = self._ask("POST", "/completion", json.dumps(question))
        assert status == 200, answer
        return str(json.loads(answer)["content"])

    def _ask(self, method: str, path: str, body: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(
    programs: Path, model: Path, flags: Sequence[str], settings: Mapping[str, str], folder: Path
) -> Iterator[Server]:
    """A llama-server that serves."""
    port = free_port()
    command = [str(programs / "llama-server"), "-m", str(model), "--port", str(port), "-c", "512", "-t", "2"]
    with started([*command, *flags, "--no-repack", "--verbose"], port, settings, folder) as running:
        yield running


@contextmanager
def started(command: Sequence[str], port: int, settings: Mapping[str, str], folder: Path) -> Iterator[Server]:
    """What the command serves; it is asked to end afterwards, as with Ctrl-C, and must do so without an error."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(settings), cwd=folder)
    running = Server(port, log)
    try:
        deadline = time.monotonic() + 60
        while not running.is_ready():
            assert process.poll() is None and time.monotonic() < deadline, running.log[-2000:]
            time.sleep(0.1)
        yield running
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, running.log[-2000:]
    finally:
        process.kill()
        process.wait()
