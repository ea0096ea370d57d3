"""The cache's policy layer, tested in C++ where it lives, under the address and undefined-behaviour sanitizers."""

import subprocess
from pathlib import Path

import pytest
from compile import HERE, SOURCES, compile_objects, compile_program

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def policy_layer(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Object files of the policy layer, compiled once for all programs here."""
    return compile_objects(tmp_path_factory.mktemp("cache"), sorted((SOURCES / "cache").glob("*.cpp")), flags=FLAGS)


def run(name: str, policy_layer: list[Path], *args: str) -> None:
    program = policy_layer[0].parent / name
    if not program.exists():
        compile_program(program, [HERE / f"{name}.cpp", *policy_layer], flags=FLAGS, ggml=False)
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_each_rule_of_the_slot_table_holds(policy_layer: list[Path]) -> None:
    """Pins, dwell, hysteresis, sightings, intervals, seeds, fills and cancels, a small history each."""
    run("slot_table_test", policy_layer)


def test_slots_keep_their_promises_over_random_histories(policy_layer: list[Path]) -> None:
    """Two million random steps beside a naive model: never two experts a slot, never a pinned one evicted."""
    run("slot_table_histories", policy_layer, "2000000")


@pytest.mark.slow
def test_slots_keep_their_promises_over_many_more_histories(policy_layer: list[Path]) -> None:
    """A hundred million steps of other histories."""
    run("slot_table_histories", policy_layer, "100000000", "1000000")


def test_slots_stay_within_their_budget(policy_layer: list[Path]) -> None:
    """Bytes are never exceeded, and coverage is the best spread there is."""
    run("budget_test", policy_layer)


def test_routing_profiles_are_read_or_refused(policy_layer: list[Path], tmp_path: Path) -> None:
    """Every shorter file and changed bytes give a sentence, never a crash."""
    run("routing_profile_test", policy_layer, str(tmp_path))


def test_replays_are_right(policy_layer: list[Path]) -> None:
    """The optimum is what a search through all caches finds, and no policy beats it."""
    run("replay_test", policy_layer)


def test_the_guard_sees_through_noise_and_costs_next_to_nothing(policy_layer: list[Path]) -> None:
    """It decides from costs that a model of a machine states: on, off, on again, a layer alone."""
    run("guard_test", policy_layer)


def test_policy_layer_knows_no_ggml() -> None:
    """No file of the policy layer includes a header of ggml or of the backend layer."""
    for source in (SOURCES / "cache").iterdir():
        assert "ggml" not in source.read_text().replace("Knows no ggml", "").replace("ggml device", ""), source.name
