"""The cache's policy, tested in C++ where it lives."""

import subprocess
from pathlib import Path

from compile import HERE, SOURCES, compile_program


def test_policy_keeps_its_properties_over_random_histories(tmp_path: Path) -> None:
    """Slots, pins, dwell, hysteresis and budgets hold over 300,000 random steps, without undefined behaviour."""
    sources = [HERE / "slot_table_test.cpp", *sorted((SOURCES / "cache").glob("*.cpp"))]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = compile_program(tmp_path / "slot_table_test", sources, flags=flags, ggml=False)
    done = subprocess.run([program, "300"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_policy_layer_knows_no_ggml() -> None:
    """No file of the policy layer includes a header of ggml or of the backend layer."""
    for source in (SOURCES / "cache").iterdir():
        assert "ggml" not in source.read_text().replace("Knows no ggml", "").replace("ggml device", ""), source.name
