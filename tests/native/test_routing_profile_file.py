"""The file that `moetune trace` writes and the cache reads: both ends agree on every count, and on what is damaged."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from compile import HERE, SOURCES, compile_program

from moetune.engine.routing import RoutedLayer, Routing, WorkloadRouting
from moetune.engine.routing_file import encode

LAYERS = (RoutedLayer(1, 8, 2), RoutedLayer(40, 300, 3))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache's own reader as a program, watched by the sanitizers."""
    sources = [HERE / "routing_profile_dump.cpp", SOURCES / "cache" / "routing_profile.cpp"]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compile_program(tmp_path_factory.mktemp("reader") / "dump", sources, flags=flags, ggml=False)


@pytest.fixture(scope="module")
def routing() -> Routing:
    """Two workloads on a layer of byte-wide and one of wider ids."""
    rng = np.random.default_rng(0)
    workloads = []
    for name, n_tokens in (("code", 50), ("prosé", 20)):
        ids = [
            np.stack([rng.permutation(layer.n_expert)[: layer.n_used] for _ in range(n_tokens)]).astype(layer.id_type)
            for layer in LAYERS
        ]
        workloads.append(WorkloadRouting(name, tuple(ids)))
    return Routing("0123456789abcdef" * 2, LAYERS, tuple(workloads))


def read(reader: Path, path: Path, content: bytes) -> "subprocess.CompletedProcess[str]":
    path.write_bytes(content)
    return subprocess.run([reader, path], capture_output=True, text=True, timeout=60)


def test_the_cache_reads_every_count_that_was_recorded(reader: Path, routing: Routing, tmp_path: Path) -> None:
    """Workload by workload, layer by layer, expert by expert."""
    done = read(reader, tmp_path / "r", encode(routing))
    assert done.returncode == 0, done.stderr
    model, *lines = done.stdout.splitlines()
    assert model == routing.model_fingerprint + "0" * 32
    expected = [
        f"{workload.name} {layer.index} {' '.join(map(str, counts.tolist()))}"
        for workload, of_workload in zip(routing.workloads, routing.counts, strict=True)
        for layer, counts in zip(routing.layers, of_workload, strict=True)
    ]
    assert lines == expected


def test_the_cache_refuses_what_is_cut_or_goes_on(reader: Path, routing: Routing, tmp_path: Path) -> None:
    """Also where only ids are missing, which the cache itself has no use for."""
    raw = encode(routing)
    for damaged in (raw[:-1], raw[:500], raw[:30], b"", raw + b"\0", b"X" + raw[1:]):
        done = read(reader, tmp_path / "r", damaged)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.strip()
