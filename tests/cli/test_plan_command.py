"""`moetune plan`: nothing is run, everything is said."""

import json
import re
from pathlib import Path

import pytest
from command_outcome import Command

from moetune.demo import demo_model_path
from moetune.errors import ExitCode

DESKTOP = """\
cpu: {cores: 8}
ram: {gib: 32, gbps: 60}
gpus: [{name: A card, vram_gib: 0.4, gbps: 400, link_gbps: 12}]
"""


@pytest.fixture
def machine(tmp_path: Path) -> str:
    """A card so small that not even its reserve is free, and enough RAM."""
    path = tmp_path / "machine.yaml"
    path.write_text(DESKTOP)
    return str(path)


def test_a_plan_for_the_demo_model_on_an_emulated_machine(command: Command) -> None:
    """Memory, configurations, what binds and what would change it, in 80 columns; the emulated mark is there."""
    done = command("plan", str(demo_model_path()), "--emulate", "desktop,vram_mib=8", "--ctx", "1024")
    assert done.code == ExitCode.OK
    assert max(len(line) for line in done.out.splitlines()) <= 80
    for words in (
        "weights",
        "KV cache",
        "expert slots",
        "in all",
        "best 1",
        "stock, all on the CPU",
        "binds",
        "emulated",
    ):
        assert words in done.out
    assert "stock, all on the device: " in done.out
    assert "too many for the fast tier" in done.out
    assert re.search(r"twice the .*: .* s, \d+% less", done.out)


def test_json_holds_the_same_plan(command: Command, machine: str, model_file: Path) -> None:
    """For programs: bytes, speeds, reasons, and every assumption with its source."""
    done = command("plan", str(model_file), "--machine", machine, "--format", "json", "--workload", "chat")
    assert done.code == ExitCode.OK
    plan = json.loads(done.out)
    first = plan["best"][0]
    assert first["fits"]
    assert first["turn_s"] > 0
    assert first["bound"] in first["reason"]
    assert sum(first["waits"].values()) == pytest.approx(1)
    assert plan["kv_bytes"]["f16"] > plan["kv_bytes"]["q8_0"]
    *parts, in_all = plan["memory"]
    assert all(sum(share["fast_bytes"][name] for share in parts) == n for name, n in in_all["fast_bytes"].items())
    assert all(assumption["source"] for assumption in plan["assumed"])


def test_a_stated_skew_changes_the_hit_rates(command: Command) -> None:
    """And the plan says what its hit rates rest on."""
    outcomes = [
        json.loads(
            command(
                "plan",
                str(demo_model_path()),
                "--emulate",
                "desktop,vram_mib=8",
                "--ctx",
                "1024",
                "--format",
                "json",
                "--skew",
                skew,
            ).out
        )
        for skew in ("0.3@0.25", "0.9@0.25")
    ]
    rates = [max(row["hit_rate"] or 0 for row in plan["best"]) for plan in outcomes]
    assert rates[0] < rates[1]
    assert "as stated" in outcomes[0]["routing"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--machine", "{machine}", "--emulate", "desktop"), "Use one of them"),
        (("--machine", "/nowhere/m.yaml"), "/nowhere/m.yaml"),
        (("--machine", "{machine}", "--skew", "85"), "0.85@0.2"),
        (("--machine", "{machine}", "--device", "CUDA7"), "GPU0"),
        (("--machine", "{machine}", "--kv", "q9"), "q9"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    command: Command, machine: str, model_file: Path, flags: tuple[str, ...], said: str
) -> None:
    """With the cause, the remedy and an exit code of its own."""
    done = command("plan", str(model_file), *(flag.format(machine=machine) for flag in flags))
    assert done.code in (ExitCode.USAGE, ExitCode.DEVICE)
    assert said in done.err
    assert done.out == ""
