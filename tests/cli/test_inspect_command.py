"""`moetune inspect`: the header, and what fits, for people and for programs."""

import json
from pathlib import Path

import pytest
import yaml
from command_outcome import Command

from moetune.demo import demo_model_path
from moetune.engine.emulator import library_path
from moetune.engine.model import read_model
from moetune.errors import ExitCode

needs_emulator = pytest.mark.skipif(not library_path().is_file(), reason="the native libraries are not built")
EMULATED = ("--emulate", "desktop,vram_mib=8", "--ctx", "1024")


@needs_emulator
def test_the_demo_model_on_an_emulated_machine(command: Command) -> None:
    """Everything in 80 columns; what does not fit is said, and that no real device was looked at."""
    done = command("inspect", str(demo_model_path()), *EMULATED)
    assert done.code == ExitCode.OK, done.err
    assert max(len(line) for line in done.out.splitlines()) <= 80
    for words in ("qwen3moe", "32 a layer, 4 used", "routed experts", "KV cache, q8_0", "EMU0", "no real device"):
        assert words in done.out


@needs_emulator
def test_programs_get_the_same_inspection(command: Command) -> None:
    """JSON and YAML alike: every byte of the file is of one kind, and what fits is no more than there is."""
    outs = [command("inspect", str(demo_model_path()), *EMULATED, "--format", f).out for f in ("json", "yaml")]
    found, again = json.loads(outs[0]), yaml.safe_load(outs[1])
    del found["ram_available_bytes"], again["ram_available_bytes"]
    assert found == again
    model = read_model(demo_model_path())
    assert sum(part["file_bytes"] for part in found["parts"]) == model.tensor_bytes
    assert found["kv_bytes_per_token"]["f16"] == 4 * 2 * 2 * 64 * 2  # layers, K and V, KV heads, width, bytes
    usual, least = found["devices"]
    assert {(room["device"], room["emulated"]) for room in (usual, least)} == {("EMU0", True)}
    assert (usual["n_ubatch"], usual["slots"]) == (512, None)
    assert least["n_ubatch"] < 512
    # Another test may have given this process's emulated device more memory.
    assert 0 < least["slots"] <= 32
    assert 0 < least["expert_layers"] <= 4


def test_a_machine_without_a_gpu(command: Command, model_file: Path) -> None:
    """The context is as long as the model was made for; the demo's 1000 tokens are no multiple of anything."""
    done = command("inspect", str(model_file), "--device", "none", "--format", "json")
    found = json.loads(done.out)
    assert found["devices"] == []
    assert {row["n_ctx"] for row in found["longest_context"]} == {1024}
    assert "everything runs on the CPU" in command("inspect", str(model_file), "--device", "none").out


def test_a_context_the_model_was_not_made_for(command: Command, model_file: Path) -> None:
    """As everywhere."""
    command("inspect", str(model_file), "--ctx", "4096").complains(ExitCode.USAGE, "4096", "1024")
