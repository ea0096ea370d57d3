"""Servers that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import EMULATED, ON_CPU, ON_DEVICE, Server, serving


@pytest.fixture(scope="session", params=["CPU", "emulated accelerator"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Four sequences, with a cache, on the CPU as its own fast tier and on an emulated accelerator."""
    folder = tmp_path_factory.mktemp("server")
    is_emulated = request.param != "CPU"
    config, emulate = (ON_DEVICE, EMULATED) if is_emulated else (ON_CPU, None)
    with serving(folder, "--parallel", "4", config=config, emulate=emulate) as running:
        yield running


@pytest.fixture(scope="session")
def cpu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sequence, one place in the queue, small bodies."""
    folder: Path = tmp_path_factory.mktemp("small-server")
    with serving(folder, "--parallel", "1", "--queue", "1", "--max-body", "0.02") as running:
        yield running
