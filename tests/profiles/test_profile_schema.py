"""What a profile's file may hold, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moetune.engine.config import (
    Ahead,
    CacheKnobs,
    EngineConfig,
    FlashAttention,
    KvType,
    LoadMode,
    Policy,
    PromptWay,
    SplitMode,
    Spread,
)
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.schema import Profile, read_profile, to_yaml

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = GOLDENS / "profile-v3.yaml"


def refused(path: Path) -> MoetuneError:
    """The error that reading `path` gives; the file is still what it was."""
    before = path.read_bytes()
    with pytest.raises(MoetuneError) as caught:
        read_profile(path)
    assert caught.value.code is ExitCode.STORAGE
    assert str(path) in caught.value.cause
    assert caught.value.remedy
    assert path.read_bytes() == before
    return caught.value


def with_value(tmp_path: Path, dotted: str, value: object) -> Path:
    """The golden profile with one value replaced or added."""
    data = yaml.safe_load(GOLDEN.read_text())
    target = data
    *parents, last = dotted.split(".")
    for name in parents:
        target = target[name]
    target[last] = value
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_profile_of_schema_1_keeps_its_meaning() -> None:
    """The golden file of schema version 1 loads with every value where it was."""
    profile = read_profile(GOLDENS / "profile-v1.yaml")
    assert profile.config == EngineConfig(
        n_ctx=8192,
        n_threads=8,
        type_v=KvType.Q8_0,
        device="CUDA0",
        gpu_layers=33,
        ram_expert_layers=33,
        cache=CacheKnobs(
            slots=12, policy=Policy.HEAT, interval_tokens=4, min_sightings=2, dwell_tokens=16, half_life_tokens=128.0
        ),
        load_mode=LoadMode.NONE,
    )
    assert (profile.result.tg_tps, profile.result.hit_rate, profile.baseline.hit_rate) == (31.25, 0.81, None)
    assert (profile.workload, profile.verdict.kind, profile.gain_low) == ("chat", "cache-wins", 1.35)


def test_a_profile_of_schema_2_keeps_its_meaning() -> None:
    """The golden file of schema version 2 loads with every value where it was."""
    profile = read_profile(GOLDENS / "profile-v2.yaml")
    assert profile.config == EngineConfig(
        n_ctx=8192,
        n_threads=8,
        n_threads_batch=16,
        type_v=KvType.Q8_0,
        device="CUDA0",
        gpu_layers=33,
        ram_expert_layers=20,
        cache=CacheKnobs(
            slots=0,
            budget_bytes=4294967296,
            spread=Spread.COVERAGE,
            policy=Policy.LFRU,
            interval_tokens=4,
            routing="m/routing.moetrace",
            prefill=PromptWay.STREAM,
            reserve_bytes=536870912,
            ahead=Ahead.NEVER,
        ),
        load_mode=LoadMode.DIO,
        no_host=True,
        flash_attn=FlashAttention.ON,
        more_devices=("CUDA1",),
        tensor_split=(25, 8),
        split_mode=SplitMode.ROW,
    )
    assert (profile.result.tg_tps, profile.result.hit_rate, profile.baseline.hit_rate) == (31.25, 0.81, None)


def test_a_profile_of_schema_3_says_what_it_beat() -> None:
    """The golden file of schema version 3 is that of version 2 with the baseline's configuration."""
    profile, older = read_profile(GOLDEN), read_profile(GOLDENS / "profile-v2.yaml")
    assert older.baseline_config is None
    assert profile == replace(older, baseline_config=profile.baseline_config)
    assert profile.baseline_config == replace(
        profile.config,
        cache=None,
        ram_expert_layers=14,
        load_mode=LoadMode.MMAP,
        no_host=False,
        flash_attn=FlashAttention.AUTO,
        split_mode=SplitMode.LAYER,
    )


@pytest.mark.parametrize("schema", [1, 2])
def test_an_old_profile_is_written_in_the_new_schema(tmp_path: Path, schema: int) -> None:
    """Reading an older schema, writing and reading again changes nothing."""
    old = read_profile(GOLDENS / f"profile-v{schema}.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(old))
    assert "schema_version: 3" in path.read_text()
    assert read_profile(path) == old


def test_the_writer_reproduces_the_golden_file() -> None:
    """Writing the golden profile again gives the same file."""
    assert yaml.safe_load(to_yaml(read_profile(GOLDEN))) == yaml.safe_load(GOLDEN.read_text())
    assert to_yaml(read_profile(GOLDEN)) == GOLDEN.read_text()


@given(
    cache=st.none() | st.builds(CacheKnobs, slots=st.integers(0, 512), hysteresis=st.floats(0.5, 9.0)),
    type_k=st.sampled_from(KvType),
    tg_tps=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    sentence=st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=80),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cache: CacheKnobs | None, type_k: KvType, tg_tps: float, sentence: str
) -> None:
    """Any configuration, speed and sentence survives the way through the file."""
    golden = read_profile(GOLDEN)
    profile = replace(
        golden,
        config=replace(golden.config, cache=cache, type_k=type_k),
        result=replace(golden.result, tg_tps=tg_tps),
        verdict=replace(golden.verdict, sentence=sentence),
    )
    path = tmp_path_factory.mktemp("round") / "profile.yaml"
    path.write_text(to_yaml(profile), encoding="utf-8")
    assert read_profile(path) == profile


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("surprise", 1),
        ("config.surprise", 1),
        ("config.cache.surprise", 1),
        ("config.n_threads", "8"),
        ("config.n_threads", 0),
        ("config.n_threads", 10**9),
        ("config.n_ctx", 4096),
        ("baseline_config.n_ctx", 4096),
        ("baseline_config.n_threads", 0),
        ("baseline_config", "stock"),
        ("config.type_k", "f17"),
        ("config.cache.slots", -1),
        ("config.cache.hysteresis", math.nan),
        ("config.cache.half_life_tokens", 0.0),
        ("config.device", "CUDA0\x1b[2J"),
        ("config.mmap", True),
        ("config.load_mode", "floppy"),
        ("config.n_threads_batch", 0),
        ("config.n_threads_batch", 10**9),
        ("config.more_devices", ["CUDA1\n"]),
        ("config.more_devices", ["CUDA1"] * 16),
        ("config.tensor_split", [25]),
        ("config.tensor_split", [25, -8]),
        ("config.tensor_split", [0, 0]),
        ("config.cache.reserve_bytes", -1),
        ("config.cache.ahead", "sometimes"),
        ("config.cache.routing", "a\nb"),
        ("result.tg_tps", math.inf),
        ("result.tg_tps", -1.0),
        ("result.hit_rate", 1.5),
        ("gain", True),
        ("workload", "../../etc"),
        ("verdict.sentence", "two\nlines"),
        ("created_at", "yesterday"),
        ("schema_version", 0),
        ("schema_version", 1),
        ("schema_version", 2),
        ("schema_version", True),
        ("schema_version", "1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, dotted: str, value: object) -> None:
    """Unknown keys, wrong types, numbers out of range and text that would upset a terminal are corrupt."""
    assert "not valid" in refused(with_value(tmp_path, dotted, value)).cause


def test_a_missing_value_is_refused_by_name(tmp_path: Path) -> None:
    """The message says which key is missing."""
    path = tmp_path / "short.yaml"
    path.write_text(GOLDEN.read_text().replace("baseline_name: stock, best layer offload\n", ""))
    assert "baseline_name" in refused(path).cause


def test_a_newer_schema_says_to_upgrade(tmp_path: Path) -> None:
    """A profile of a later schema is not called corrupt, whatever else is in it."""
    path = tmp_path / "newer.yaml"
    path.write_text("schema_version: 4\nsomething_new: [1, 2]\n")
    error = refused(path)
    assert "newer moetune" in error.cause
    assert "Upgrade" in error.remedy


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just text",
        b"- a\n- b\n",
        b"a: [1, 2",
        b"\xff\xfe\x00binary",
        b"a: !!python/object/apply:os.system ['true']\n",
        b"a: &x [1]\nb: *x\n",
        b"a: 1\na: 2\n",
        b"a: " + b"[" * 100 + b"]" * 100,
        b"a: 2024-99-99\n",
        b"a: !!binary aGVsbG8=\n",
        b"a: .nan\n",
        b"? [1, 2]\n: 3\n",
        b"x: " + b"y" * (300 << 10),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_not_a_plain_small_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    """Nothing that YAML could smuggle in reaches the schema, and no traceback reaches the user."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert "not valid" in refused(path).cause


def test_a_file_that_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    """A folder in place of the file is reported with its path."""
    with pytest.raises(MoetuneError, match="cannot be read") as caught:
        read_profile(tmp_path)
    assert caught.value.code is ExitCode.STORAGE


def test_an_unreadable_profile_is_never_written(profile: Profile) -> None:
    """A value that the reader would refuse stops the writer, as a bug and not as a user's mistake."""
    with pytest.raises(ValidationError):
        to_yaml(replace(profile, workload="Not A Name"))
    with pytest.raises(ValueError, match="n_threads"):
        to_yaml(replace(profile, config=replace(profile.config, n_threads=0)))
