"""Models and adapters to compare on, and processes that replay scenarios with and without the cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora import write_lora
from replayer import Replayer, Run
from scenario import Outcome, Scenario

from moetune.demo import demo_model_path
from moetune.demo.synthetic import SyntheticSpec, write_synthetic

SHAPE = {"layers": 4, "experts": 16, "used": 4, "embd": 256, "ff": 128, "skew": 0.9}


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Path of the demo model, or of a random-weight model of an architecture, written once a session."""
    folder = tmp_path_factory.mktemp("models")

    def path_of(arch: str, quant: str = "Q8_0", **changes: object) -> str:
        if arch == "demo":
            return str(demo_model_path())
        name = "-".join([arch, quant, *(f"{k}{v}" for k, v in changes.items())])
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_synthetic(path, SyntheticSpec(arch=arch, quant=quant, **{**SHAPE, **changes}))
        return str(path)

    return path_of


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Path of a random adapter for a model's attention ("attention") or routed experts ("experts")."""
    folder = tmp_path_factory.mktemp("adapters")

    def path_of(model: str, kind: str, seed: int = 0) -> str:
        path = folder / f"{Path(model).stem}-{kind}-{seed}.gguf"
        if not path.exists():
            write_lora(path, Path(model), kind, seed)
        return str(path)

    return path_of


def _replayer(tmp_path_factory: pytest.TempPathFactory, *options: str) -> Iterator[Replayer]:
    replayer = Replayer(tmp_path_factory.mktemp("logits"), *options)
    yield replayer
    replayer.close()


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Replay on stock llama.cpp, the plugin not even loaded. Equal references are replayed once a session."""
    known: dict[Scenario, Outcome] = {}
    for replayer in _replayer(tmp_path_factory):

        def replay(scenario: Scenario, replayer: Replayer = replayer) -> Outcome:
            reference = scenario.reference()
            if reference not in known:
                known[reference] = replayer(reference)
            return known[reference]

        yield replay


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Replay with the cache, the CPU as its own fast tier."""
    yield from _replayer(tmp_path_factory, "--fast-tier", "CPU")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Replay with the cache on an emulated accelerator: memory of its own, an asynchronous queue."""
    # As fast as it goes: what is tested is order, not speed.
    fast = "desktop,vram_mib=96,scale=1,launch_us=0,link_latency_us=0"
    yield from _replayer(tmp_path_factory, "--fast-tier", "EMU0", "--emulated", fast)
