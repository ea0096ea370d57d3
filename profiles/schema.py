"""A tuned profile: the configuration that won on one machine, what it was measured at, and against what."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config

from moetune.engine.config import EngineConfig, LoadMode
from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.workload import Name
from moetune.safe_yaml import BadYaml, read_mapping

SCHEMA_VERSION: Literal[3] = 3

_MAX_FILE_BYTES = 256 << 10
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Key = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
Line = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
IsoTime = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]

# Bounds for what a profile may ask of the engine: wide enough for any machine, narrow enough that a damaged or
# hostile file is refused here and not by an allocation. Counts are inclusive.
_CONFIG_BOUNDS: dict[str, tuple[int, int]] = {
    "n_ctx": (1, 1 << 24),
    "n_threads": (1, 4096),
    "n_ubatch": (1, 1 << 16),
    "gpu_layers": (0, 4096),
    "ram_expert_layers": (0, 4096),
}
_CACHE_BOUNDS: dict[str, tuple[float, float]] = {
    "slots": (0, 1 << 16),
    "interval_tokens": (1, 1 << 20),
    "hysteresis": (0.0, 1e6),
    "promotions": (0, 1 << 16),
    "min_sightings": (0, 1 << 20),
    "dwell_tokens": (0, 1 << 20),
    "half_life_tokens": (1e-3, 1e9),
    "budget_bytes": (0, 1 << 50),
    "whole_layers": (0, 1 << 16),
    "reserve_bytes": (0, 1 << 50),
}
_MAX_DEVICE_NAME = 64
# llama.cpp's own limit (llama_max_devices).
_MAX_DEVICES = 16
_MAX_LAYERS = 4097
_MAX_TEXT = 4096


@with_config(_STRICT)
@dataclass(frozen=True)
class Figures:
    """What one configuration reached. turn_s: seconds for one request of the workload; fast_bytes: device memory."""

    pp_tps: Rate
    tg_tps: Rate
    turn_s: Rate
    hit_rate: Share | None
    fast_bytes: Annotated[int, Field(ge=0)]


@with_config(_STRICT)
@dataclass(frozen=True)
class SavedVerdict:
    """How the comparison ended, as the search said it. kind: one word for programs; sentence: for people."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_-]{0,39}$")]
    sentence: Line


VERDICT = TypeAdapter(SavedVerdict)


@with_config(_STRICT)
@dataclass(frozen=True)
class Profile:
    """One remembered search.

    The keys are model_fingerprint, machine_fingerprint, engine_version, n_ctx and workload. emulated: the emulated
    machine's text when the figures come from one. gain, gain_low, gain_high: the baseline's turn time divided by the
    result's, and the bounds of that ratio; 1 means equally fast. baseline_config: None in profiles older than schema 3.
    """

    schema_version: Literal[3]
    model_fingerprint: Key
    model_name: Line
    machine_fingerprint: Key
    machine_label: Line
    emulated: Line | None
    engine_version: Key
    n_ctx: int
    workload: Name
    config: EngineConfig
    result: Figures
    baseline: Figures
    baseline_name: Line
    baseline_config: EngineConfig | None
    gain: Rate
    gain_low: Rate
    gain_high: Rate
    verdict: SavedVerdict
    created_at: IsoTime
    moetune_version: Line


_PROFILE = TypeAdapter(Profile)


def to_data(profile: Profile) -> dict[str, Any]:
    """The profile as plain values, keys in the order of the dataclass."""
    data: dict[str, Any] = _PROFILE.dump_python(profile, mode="json")
    return data


def to_yaml(profile: Profile) -> str:
    """The profile as YAML text.

    What could not be read back is a bug of the caller and raises pydantic's `ValidationError` or `ValueError`.
    """
    data = to_data(profile)
    fault = _fault(_PROFILE.validate_json(json.dumps(data, allow_nan=False)))
    if fault:
        raise ValueError(fault)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def read_profile(path: Path) -> Profile:
    """The profile in the file at `path`, checked; raises `MoetuneError` and leaves the file as it is."""
    try:
        data = read_mapping(path, max_bytes=_MAX_FILE_BYTES)
        _refuse_other_schema(path, data)
        _migrate(data)
        profile = _PROFILE.validate_json(json.dumps(data))
    except OSError as error:
        raise MoetuneError(
            f"The profile {path} cannot be read: {error.strerror or error}.",
            "Check who may read the file and its folder.",
            ExitCode.STORAGE,
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise _corrupt(path, f"{where}: {first['msg']}") from error
    except BadYaml as error:
        raise _corrupt(path, str(error)) from error
    fault = _fault(profile)
    if fault:
        raise _corrupt(path, fault)
    return profile


def _refuse_other_schema(path: Path, data: dict[str, Any]) -> None:
    version = data.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise MoetuneError(
            f"The profile {path} was written by a newer moetune (schema {version}; this one reads {SCHEMA_VERSION}).",
            "Upgrade moetune, or move the file away and search again. It was left as it is.",
            ExitCode.STORAGE,
        )


def _migrate(data: dict[str, Any]) -> None:
    """From schema 1: whether the file was memory-mapped has become one of several ways to load it. From schema 2: how
    the baseline was configured was not kept yet.
    """
    config, version = data.get("config"), data.get("schema_version")
    if isinstance(version, bool):
        return
    if version == 1 and isinstance(config, dict):
        mmap = config.pop("mmap", True)
        if isinstance(mmap, bool) and "load_mode" not in config:
            version, config["load_mode"] = 2, LoadMode.MMAP.value if mmap else LoadMode.NONE.value
    if version == 2 and "baseline_config" not in data:
        data["schema_version"], data["baseline_config"] = SCHEMA_VERSION, None


def _fault(profile: Profile) -> str | None:
    """What is out of bounds in the configurations, which their own type does not limit."""
    for path, config in (("config", profile.config), ("baseline_config", profile.baseline_config)):
        fault = _config_fault(config, profile.n_ctx) if config is not None else None
        if fault:
            return f"{path}.{fault}"
    return None


def _config_fault(config: EngineConfig, n_ctx: int) -> str | None:
    if config.n_ctx != n_ctx:
        return f"n_ctx is {config.n_ctx}, but the profile is for {n_ctx}"
    for name, (low, high) in _CONFIG_BOUNDS.items():
        if not _fits(getattr(config, name), (low, high)):
            return f"{name} is not between {low} and {high}"
    names = [*([] if config.device is None else [config.device]), *config.more_devices]
    if len(names) > _MAX_DEVICES or not all(n.isprintable() and 0 < len(n) <= _MAX_DEVICE_NAME for n in names):
        return "device or more_devices does not name devices"
    texts = (config.cache.routing, config.cache.workload) if config.cache is not None else ()
    if not all(text is None or (text.isprintable() and len(text) <= _MAX_TEXT) for text in texts):
        return "cache.routing or cache.workload is no name"
    split = config.tensor_split
    if split and (len(split) != len(names) or min(split) < 0 or not 0 < sum(split) <= _MAX_LAYERS):
        return "tensor_split does not say how many layers each device gets"
    if config.n_threads_batch is not None and not _fits(config.n_threads_batch, _CONFIG_BOUNDS["n_threads"]):
        return "n_threads_batch is not a number of threads"
    if config.cache is not None:
        for field in fields(config.cache):
            bounds, value = _CACHE_BOUNDS.get(field.name), getattr(config.cache, field.name)
            if bounds and value is not None and not _fits(value, bounds):
                return f"cache.{field.name} is not between {bounds[0]} and {bounds[1]}"
    return None


def _fits(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _corrupt(path: Path, why: str) -> MoetuneError:
    return MoetuneError(
        f"The profile {path} is not valid: {why}.",
        "Move it away and search again, or have it exported again where it came from. It was left as it is.",
        ExitCode.STORAGE,
    )
