"""A process that replays scenarios."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from scenario import Outcome, Scenario

PROGRAM = Path(__file__).with_name("replay.py")
Run = Callable[[Scenario], Outcome]


class Replayer:
    """One process with its backends. A scenario that kills it fails alone; the next one gets a new process."""

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder, self._options, self._environment = folder, options, environment or {}
        folder.mkdir(exist_ok=True)
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=5000)
        self._replayed = 0

    def __call__(self, scenario: Scenario) -> Outcome:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        out = self._folder / f"{self._replayed}.npy"
        self._replayed += 1
        try:
            process.stdin.write(f"{scenario.to_json()}\t{out}\n")
            process.stdin.flush()
        except BrokenPipeError:
            line = ""  # it died after its last answer, which is no better
        else:
            line = process.stdout.readline()
        if not line:
            raise AssertionError(f"{' '.join(self._options)}: died with {self._end()}\n{self._last_words()}")
        try:
            return Outcome.read(out, line)
        finally:
            out.unlink(missing_ok=True)

    def said(self, beginning: str) -> str:
        """What the process has logged, from the first line with this beginning on."""
        lines = list(self._said)
        first = next((i for i, line in enumerate(lines) if line.startswith(beginning)), len(lines))
        return "".join(lines[first:])

    def close(self) -> None:
        """Let the process end by itself: freeing what it holds must not kill it."""
        assert self._end() == 0, self._last_words()

    def _end(self) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait(timeout=60)
        self._listener.join(timeout=10)
        return status

    def _last_words(self) -> str:
        return "".join([line for line in self._said if "input tensor" not in line][-30:])

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), *self._options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Several threads would make a small model slower, and settle the order of nothing.
        environment = os.environ | {"OMP_NUM_THREADS": "2", "GGML_NO_BACKTRACE": "1"} | self._environment
        process = self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self._said.clear()
        self._listener = threading.Thread(target=self._said.extend, args=(process.stderr,), daemon=True)
        self._listener.start()
        return process
