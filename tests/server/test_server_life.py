"""Beginning, failing and ending: the engine may die, the server does not; Ctrl-C ends both."""

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import psutil
import pytest
from serving import LIMIT_S, PROMPTS, Server, serving

from moetune.errors import ExitCode


def health(server: Server) -> int:
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=LIMIT_S) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def engine_of(server: Server) -> psutil.Process:
    (engine,) = psutil.Process(server.process.pid).children()
    return engine


def test_an_engine_that_dies_is_replaced(tmp_path: Path) -> None:
    """Whoever was being answered is told so; the next one is answered as ever."""
    with serving(tmp_path, "--parallel", "2") as server:
        alone = server.alone(PROMPTS[:1], 16)
        stream = server.client().completions.create(
            model="demo", prompt=PROMPTS[1], max_tokens=100_000, temperature=0, stream=True
        )
        next(stream)
        engine_of(server).kill()
        with pytest.raises(openai.APIError, match="engine failed"):
            list(stream)
        assert health(server) == 503
        with pytest.raises(openai.InternalServerError, match="try again"):
            server.client().completions.create(model="demo", prompt=PROMPTS[0])
        deadline = time.monotonic() + LIMIT_S
        while health(server) != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        again = server.client().completions.create(model="demo", prompt=PROMPTS[0], max_tokens=16, temperature=0)
        assert again.choices[0].text == alone[PROMPTS[0]]
        assert server.metrics()["moetune_engine_restarts_total"] == 1
        assert "SIGKILL" in server.log.read_text()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "streaming"])
def test_ctrl_c_ends_server_and_engine(tmp_path: Path, busy: bool) -> None:
    """Also in the middle of a stream, which is cut."""
    with serving(tmp_path, "--parallel", "1") as server:
        engine = engine_of(server)
        if busy:
            stream = server.client().completions.create(
                model="demo", prompt=PROMPTS[0], max_tokens=100_000, temperature=0, stream=True
            )
            next(stream)
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=LIMIT_S) == ExitCode.INTERRUPTED
        assert psutil.wait_procs([engine], timeout=30)[1] == []
        assert "failed" not in server.log.read_text()


def test_kill_int_ends_a_background_job_alike(tmp_path: Path) -> None:
    """Which a script started with Ctrl-C ignored."""
    with serving(tmp_path, "--parallel", "1", ignoring=signal.SIGINT) as server:
        engine = engine_of(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=LIMIT_S) == ExitCode.INTERRUPTED
        assert psutil.wait_procs([engine], timeout=30)[1] == []


def test_sigterm_ends_server_and_engine(tmp_path: Path) -> None:
    """In order, and then as the signal would have: a service manager takes that for a clean end."""
    with serving(tmp_path, "--parallel", "1") as server:
        engine = engine_of(server)
        server.process.terminate()
        assert server.process.wait(timeout=LIMIT_S) == -signal.SIGTERM
        assert psutil.wait_procs([engine], timeout=30)[1] == []
        assert "failed" not in server.log.read_text()


def test_the_saved_profile_is_what_runs(tmp_path: Path) -> None:
    """It is named at the start, with what the server takes."""
    with serving(tmp_path, "--parallel", "3", "--queue", "7") as server:
        said = server.log.read_text()
        assert ": chat, context 512" in said
        assert "3 requests at once, 512 tokens each, 7 may wait" in said
