"""One measurement is one fresh process; its result is kept on disk and not measured again."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TIME_LIMIT_S = 540
LAYOUTS = ("host", "repack", "mmap")
ALL_LAYERS = 1000  # more than any model has


class Failed(Exception):
    """A program did not do its work; the text says which and why."""


@dataclass(frozen=True)
class Placement:
    """Where the routed experts are: ``ram_layers`` layers' in RAM, in ``layout``; ``cache_bytes`` puts the cache on."""

    ram_layers: int
    layout: str
    cache_bytes: int = 0


@dataclass(frozen=True)
class Effort:
    """How much one process measures; tokens of a prompt, its repetitions, then tokens of a reply."""

    prompt_tokens: int = 512
    prompts: int = 3
    warmup: int = 256
    tokens: int = 256
    positions: int = 64
    stay: int = 128

    def shortened(self) -> "Effort":
        """Enough to tell placements apart before the real measurement."""
        return Effort(self.prompt_tokens, 1, min(self.warmup, 64), min(self.tokens, 64), self.positions, self.stay)


@dataclass(frozen=True)
class Run:
    """What one process measured. Times in seconds; ``buffers`` in MiB by ggml's name, from llama.cpp's log."""

    name: str
    placement: Placement
    data: Mapping[str, Any]
    buffers: Mapping[str, float]

    @property
    def tg_tps(self) -> float:
        return len(self.data["reply_s"]) / float(sum(self.data["reply_s"]))

    @property
    def pp_tps(self) -> float:
        times = self.data["prompt_s"]
        return float(self.data["prompt_tokens"] * len(times) / sum(times)) if times else 0.0

    @property
    def vram_bytes(self) -> int:
        return int(self.data["vram_bytes"])

    def record(self) -> dict[str, Any]:
        """Everything, for the results file."""
        return {"name": self.name, "placement": asdict(self.placement), "buffers_mib": dict(self.buffers), **self.data}


@dataclass(frozen=True)
class Bench:
    """Programs, model and device; ``work`` keeps what has been measured."""

    work: Path
    device: str
    threads: int
    effort: Effort
    libraries: tuple[Path, ...]

    @property
    def model(self) -> Path:
        return (self.work / "model.gguf").resolve()

    @property
    def plugin(self) -> Path:
        return self.work / "plugin" / "libggml_hotcache.so"

    def measure(self, name: str, placement: Placement, *, short: bool = False, logits: bool = False) -> Run:
        """Measure in a fresh process, or take what an earlier call with the same question measured. Raises Failed."""
        effort = self.effort.shortened() if short else self.effort
        out = self.work / "runs" / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        kept_logits = out.with_suffix(".logits")
        command = self._command("measure", placement)
        for key, value in asdict(effort).items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        if logits:
            command += ["--logits", str(kept_logits)]
        settings = self._settings(placement)
        question = self._question(command, settings)
        asked = out.with_suffix(".asked")
        kept = out.exists() and asked.exists() and asked.read_text() == question
        if not kept or (logits and not kept_logits.exists()):
            say(f"measuring {name}")
            asked.unlink(missing_ok=True)
            self._run([*command, "--out", str(out)], settings, out.with_suffix(".log"))
            asked.write_text(question)
        log = out.with_suffix(".log").read_text(errors="replace")
        return Run(name, placement, json.loads(out.read_text()), _buffers(log))

    def compare(self, base: str, other: str) -> dict[str, Any]:
        """How far the logits of two runs lie apart. Raises Failed."""
        runs = self.work / "runs"
        out = runs / f"{other}-logits.json"
        command = [str(self.work / "programs" / "compare"), "--out", str(out)]
        command += ["--base", str(runs / f"{base}.logits"), "--other", str(runs / f"{other}.logits")]
        self._run(command, {}, out.with_suffix(".log"))
        return dict(json.loads(out.read_text()))

    def routing(self) -> dict[str, Any]:
        """How unevenly the model routes the trace. Raises Failed."""
        out = self.work / "routing.json"
        command = [*self._command("routing", Placement(ALL_LAYERS, "mmap")), "--stay", str(self.effort.stay)]
        self._run([*command, "--out", str(out)], {}, out.with_suffix(".log"))
        return dict(json.loads(out.read_text()))

    def _command(self, program: str, placement: Placement) -> list[str]:
        command = [str(self.work / "programs" / program), "--model", str(self.model), "--device", self.device]
        command += ["--threads", str(self.threads), "--cpu-moe", str(placement.ram_layers)]
        command += ["--layout", placement.layout]
        for library in self.libraries:
            command += ["--load", str(library)]
        if placement.cache_bytes:
            command += ["--plugin", str(self.plugin)]
        return command

    def _settings(self, placement: Placement) -> dict[str, str]:
        """Settings of the cache: the caller's HOTCACHE_* variables, and where and how large."""
        if not placement.cache_bytes:
            return {}
        ours = {key: value for key, value in os.environ.items() if key.startswith("HOTCACHE_")}
        return {**ours, "HOTCACHE_DEVICE": self.device, "HOTCACHE_BYTES": str(placement.cache_bytes)}

    def _question(self, command: list[str], settings: Mapping[str, str]) -> str:
        """What a kept result must have been asked for: the same command, variables, programs, model and threads."""
        others = {key: value for key, value in os.environ.items() if key.startswith(("EMU_", "GGML_"))}
        files = [Path(command[0]), self.plugin, *self.libraries]
        model = self.model.stat()
        return json.dumps(
            {
                "command": command,
                "settings": {**others, **settings},
                "files": {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
                "model": [model.st_size, model.st_mtime_ns],
            },
            indent=1,
        )

    def _run(self, command: list[str], settings: Mapping[str, str], log: Path) -> None:
        ours = ("HOTCACHE_", "GGML_BACKEND_PATH")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        program = Path(command[0]).name
        with log.open("w") as out:
            print(" ".join(command), file=out, flush=True)
            try:
                done = subprocess.run(
                    command, env={**environment, **settings}, stdout=out, stderr=out, timeout=TIME_LIMIT_S, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise Failed(f"{program}: took more than {TIME_LIMIT_S} s") from error
        if done.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1]
            raise Failed(f"{program}: exit {done.returncode}, {last}")


def _buffers(log: str) -> dict[str, float]:
    return {name: float(mib) for name, mib in re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", log)}


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)
