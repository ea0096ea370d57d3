"""The parent's end of one worker process: requests with a time limit, and every way it can die as a typed failure."""

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from threading import Thread
from typing import IO

from pydantic import TypeAdapter, ValidationError

from moetune.engine import protocol
from moetune.engine.measurement import Failed, FailureReason
from moetune.engine.native_log import LINES
from moetune.engine.worker import Setup

_LOG_TAIL_BYTES = 16384


class WorkerProcess:
    """One engine process. After a `Failed` for a crash or a hang it is dead; `alive` says so."""

    def __init__(self, setup: Setup) -> None:
        self._log = tempfile.TemporaryFile(prefix="moetune-engine-")  # noqa: SIM115  (closed by `kill`)
        read_fd, write_fd = os.pipe()
        is_heard = LINES.isEnabledFor(logging.DEBUG)
        command = [sys.executable, "-m", "moetune.engine.worker", TypeAdapter(Setup).dump_json(setup).decode()]
        self._process = subprocess.Popen(
            [*command, str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if is_heard else self._log,
            pass_fds=(write_fd,),
        )
        self._listener = Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        if is_heard:
            self._listener.start()
        os.close(write_fd)
        self._responses = os.fdopen(read_fd, "rb", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._responses, selectors.EVENT_READ)
        self._pending = b""

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once the process has ended or been given up."""
        return self._process.poll() is None and not self._responses.closed

    def call(self, request: protocol.Request, time_limit_s: float) -> protocol.Response | Failed:
        """Send one request and wait for one response. Never raises for what the worker does."""
        return self.send(request) or self.receive(time.monotonic() + time_limit_s)

    def send(self, request: protocol.Request) -> Failed | None:
        """Pass a request on; a `Failed` when the process is gone."""
        stdin = self._process.stdin
        if stdin is None or not self.alive:
            return self._crashed()
        try:
            stdin.write(protocol.encode(request))
            stdin.flush()
        except (OSError, ValueError):  # it is gone; or another thread has just found it gone
            return self._crashed()
        return None

    def stop(self) -> None:
        """End a generation, if one runs. That the process is gone, or just being written to, is the caller's to see."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self._process.stdin.write(protocol.encode(protocol.Stop()))
                self._process.stdin.flush()

    def receive(self, deadline: float) -> protocol.Response | Failed:
        """The next response; past `deadline` (time.monotonic) the process is killed."""
        while b"\n" not in self._pending:
            if not self._selector.select(max(deadline - time.monotonic(), 0)):
                self.kill()
                return Failed(FailureReason.HUNG, "the engine gave no answer within its time limit and was stopped")
            received = self._responses.read(1 << 16)
            if not received:
                return self._crashed()
            self._pending += received
        line, self._pending = self._pending.split(b"\n", 1)
        try:
            response = protocol.decode_response(line)
        except ValidationError as error:
            self.kill()
            return Failed(FailureReason.CRASHED, f"the engine answered nonsense: {error.error_count()} invalid fields")
        return response.failed if isinstance(response, protocol.Refused) else response

    def close(self) -> None:
        """Let the process free everything and end; kill it when it does not within a few seconds."""
        if self.alive and self.send(protocol.Quit()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self.kill()

    def kill(self) -> None:
        """End the process now."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._responses.closed:
            return
        self._hear_out()
        self._selector.close()
        self._responses.close()
        self._log.close()
        if self._process.stdin is not None:
            # What is left in the buffer was for a process that is gone.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _crashed(self) -> Failed:
        if self._responses.closed:
            return Failed(FailureReason.CRASHED, "the engine process has ended")
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = 0
        self._hear_out()
        tail = self._log_tail()
        self.kill()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        reason = FailureReason.CRASHED
        if "bad_alloc" in tail or "MemoryError" in tail:
            reason = FailureReason.OUT_OF_MEMORY
        return Failed(reason, f"the engine process ended with {how}. {tail}".strip())

    def _listen(self, source: IO[bytes]) -> None:
        # A line that comes after the log was closed is of a process that was given up.
        with source, contextlib.suppress(ValueError):
            for line in source:
                self._log.write(line)
                LINES.debug("%s", line.decode(errors="replace").rstrip("\n"))

    def _hear_out(self) -> None:
        """Wait for the last lines of a process that has ended; a debugger it started may hold their pipe open."""
        if self._listener.is_alive():
            self._listener.join(timeout=5)

    def _log_tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _LOG_TAIL_BYTES, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        # An abort is followed by a debugger's backtrace; what was asserted tells more.
        asserted = [line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line or "fatal error" in line]
        return " ".join(asserted[-1:] or lines[-2:])
