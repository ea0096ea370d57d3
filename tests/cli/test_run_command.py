"""`moetune run`: which configuration runs, what goes to which stream, how it ends."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from command_outcome import Command

from moetune.cli.machine import seen_machine
from moetune.cli.output import stream
from moetune.engine.config import CacheKnobs, EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats, Sampling, TextChunk
from moetune.engine.library import engine_version
from moetune.engine.measurement import CacheCounters
from moetune.engine.model import read_model
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile, read_profile
from moetune.profiles.store import ProfileStore, name_of

GOLDEN = Path(__file__).parents[1] / "profiles" / "goldens" / "profile-v1.yaml"
COUNTERS = CacheCounters(hits=9, misses=3, promotions=1, bytes_moved=1, hot_s=0.1, cold_s=0.1, wait_s=0.0)
STATS = GenerationStats(n_prompt=4, prompt_s=0.5, n_reply=10, reply_s=2.0, stopped="limit", counters=COUNTERS)


class FakeEngine:
    """Records what it is asked and yields what it is told to."""

    def __init__(self) -> None:
        self.configs: list[EngineConfig] = []
        self.requests: list[GenerationRequest] = []
        self.items: list[TextChunk | GenerationStats | BaseException] = [TextChunk("Hello"), TextChunk("!"), STATS]
        self.closed = False

    def __call__(self, model_path: Path, emulated: object = None, *, watched: bool = False) -> "FakeEngine":
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def generate(
        self, config: EngineConfig, request: GenerationRequest, *, time_limit_s: float
    ) -> Iterator[TextChunk | GenerationStats]:
        self.configs.append(config)
        self.requests.append(request)
        for item in self.items:
            if isinstance(item, BaseException):
                raise item
            yield item


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr("moetune.cli.run.EngineRunner", fake)
    return fake


@pytest.fixture
def profile(model_file: Path) -> Profile:
    """A profile of the tiny model on this machine; its eleven slots are its mark."""
    config = EngineConfig(n_ctx=512, n_threads=1, device="CPU", cache=CacheKnobs(slots=11))
    return replace(
        read_profile(GOLDEN),
        model_fingerprint=read_model(model_file).fingerprint,
        machine_fingerprint=seen_machine(None, None).fingerprint,
        engine_version=engine_version(),
        n_ctx=512,
        config=config,
    )


def at_context(profile: Profile, n_ctx: int, created_at: str) -> Profile:
    return replace(profile, n_ctx=n_ctx, config=replace(profile.config, n_ctx=n_ctx), created_at=created_at)


def test_the_profile_is_applied_and_said(
    command: Command, engine: FakeEngine, model_file: Path, profile: Profile
) -> None:
    """The saved configuration reaches the engine unchanged, and the user reads which it is."""
    ProfileStore().save(profile)
    result = command("run", str(model_file), "-p", "hi")
    assert result.code == ExitCode.OK
    assert profile.config.cache is not None
    assert engine.configs == [replace(profile.config, cache=replace(profile.config.cache, guard=True))]
    assert f"profile {name_of(profile)[:8]}: {profile.workload}, context 512" in result.err
    assert f"{profile.gain:.2f}× as fast as {profile.baseline_name}" in " ".join(result.err.split())


def test_a_profile_that_promises_nothing_says_so(command: Command, model_file: Path, profile: Profile) -> None:
    """It is the baseline itself."""
    ProfileStore().save(replace(profile, gain=1.0, gain_low=1.0, gain_high=1.0))
    assert f"{profile.baseline_name}: nothing faster was proven" in command("run", str(model_file), "-p", "hi").err


def test_only_the_models_text_goes_to_standard_output(command: Command, model_file: Path) -> None:
    """Speeds and hit rate go to standard error, so that the text can be piped on."""
    result = command("run", str(model_file), "-p", "hi")
    assert result.out == "Hello!\n"
    assert "10 tokens in 2.00 s (5.0 tok/s)" in result.err
    assert "hit rate 75%" in result.err


def test_without_a_profile_the_baseline_runs_and_the_search_is_named(
    command: Command, engine: FakeEngine, model_file: Path
) -> None:
    """Stock llama.cpp, and the exact command that would find something better."""
    result = command("run", str(model_file), "-p", "hi", "--workload", "code", "--ctx", "512")
    assert result.code == ExitCode.OK
    assert engine.configs[0].cache is None
    assert engine.configs[0].n_ctx == 512
    assert f"moetune search {model_file} --workload code --ctx 512" in result.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine_fingerprint": "elsewhere", "machine_label": "the big one"}, "another machine: the big one"),
        ({"machine_fingerprint": "elsewhere", "emulated": "desktop"}, "--emulate desktop"),
        ({"engine_version": "moetune 0.0.1"}, "another engine: moetune 0.0.1"),
    ],
    ids=["machine", "emulated machine", "engine"],
)
def test_a_profile_from_elsewhere_is_named_and_not_applied(
    command: Command, engine: FakeEngine, model_file: Path, profile: Profile, change: dict[str, str], said: str
) -> None:
    """What was measured on other hardware or by another engine is no proof here."""
    ProfileStore().save(replace(profile, **change))  # type: ignore[arg-type]
    result = command("run", str(model_file), "-p", "hi")
    assert engine.configs[0].cache is None
    assert said in " ".join(result.err.split())


def test_the_newest_profile_applies_unless_flags_choose(
    command: Command, engine: FakeEngine, model_file: Path, profile: Profile
) -> None:
    """Without flags the newest one; with --ctx exactly that one; with another --ctx none."""
    ProfileStore().save(profile)
    ProfileStore().save(at_context(profile, 256, created_at="2030-01-01T00:00:00Z"))
    command("run", str(model_file), "-p", "hi")
    command("run", str(model_file), "-p", "hi", "--ctx", "512", "--workload", "chat")
    command("run", str(model_file), "-p", "hi", "--ctx", "1024")
    assert [(config.n_ctx, config.cache is not None) for config in engine.configs] == [
        (256, True),
        (512, True),
        (1024, False),
    ]


@pytest.mark.parametrize("flags", [[], ["--ctx", "512", "--workload", "chat"]], ids=["any", "exact"])
@pytest.mark.parametrize("content", ["schema_version: 1\n", "schema_version: 9\n", "\x00"], ids=repr)
def test_a_damaged_or_newer_profile_stops_the_run(
    command: Command, model_file: Path, profile: Profile, flags: list[str], content: str
) -> None:
    """The file is named and stays as it is."""
    path = ProfileStore().save(profile)
    path.write_text(content)
    command("run", str(model_file), "-p", "hi", *flags).complains(ExitCode.STORAGE, str(path))
    assert path.read_text() == content


def test_a_profile_whose_device_is_gone_stops_the_run(command: Command, model_file: Path, profile: Profile) -> None:
    """Running it elsewhere would not be what was proven."""
    ProfileStore().save(replace(profile, config=replace(profile.config, device="CUDA7")))
    result = command("run", str(model_file), "-p", "hi")
    assert result.code == ExitCode.DEVICE
    assert "CUDA7" in result.err


def test_the_prompt_can_be_piped(command: Command, engine: FakeEngine, model_file: Path) -> None:
    """Standard input is taken as it is, whatever language it is in."""
    command("run", str(model_file), piped="Grüße, 世界\n".encode())
    assert engine.requests[0].prompt == "Grüße, 世界\n"


def test_flags_reach_the_engine(command: Command, engine: FakeEngine, model_file: Path) -> None:
    """Length, temperature and seed arrive as typed; a model without a template runs raw."""
    command("run", str(model_file), "-p", "hi", "--max-tokens", "7", "--temperature", "0.5", "--seed", "3")
    assert engine.requests == [GenerationRequest("hi", 7, Sampling(0.5, seed=3), chat=False)]


def test_interrupting_ends_the_line_and_the_engine(command: Command, engine: FakeEngine, model_file: Path) -> None:
    """Ctrl-C keeps the text so far, ends with a line break and exits with 130."""
    engine.items = [TextChunk("Hel"), KeyboardInterrupt()]
    result = command("run", str(model_file), "-p", "hi")
    assert (result.code, result.out, engine.closed) == (ExitCode.INTERRUPTED, "Hel\n", True)
    assert "Traceback" not in result.err


def test_an_engine_that_fails_is_reported_after_the_text_so_far(
    command: Command, engine: FakeEngine, model_file: Path
) -> None:
    """The engine's own error and exit code reach the user."""
    engine.items = [TextChunk("Hel"), MoetuneError("It crashed.", "Try again.", ExitCode.ENGINE)]
    result = command("run", str(model_file), "-p", "hi")
    assert (result.code, result.out) == (ExitCode.ENGINE, "Hel\n")
    assert "error: It crashed.\n  Try again." in result.err


def test_a_model_larger_than_memory_is_refused_unless_allowed(
    command: Command, engine: FakeEngine, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would run from disk; the user decides."""
    machine = seen_machine(None, None)
    small = replace(machine, memory=replace(machine.memory, available_bytes=1 << 20))
    monkeypatch.setattr("moetune.cli.run.seen_machine", lambda model, emulated: small)
    refused = command("run", str(model_file), "-p", "hi")
    assert refused.code == ExitCode.MEMORY
    assert "--allow-overcommit" in refused.err
    assert command("run", str(model_file), "-p", "hi", "--allow-overcommit").code == ExitCode.OK
    assert len(engine.configs) == 1


def test_a_terminal_gets_no_control_codes_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model cannot move the cursor or rename the window; a pipe gets its bytes as they are."""
    written: list[str] = []
    terminal = SimpleNamespace(isatty=lambda: True, write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", terminal)
    stream("a\x1b]0;b\x07\tc\n")
    assert "".join(written) == "a�]0;b�\tc\n"
