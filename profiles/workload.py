"""Workloads: what a person does with the model, as text and a mix of lengths."""

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config

from moetune.errors import ExitCode, MoetuneError
from moetune.safe_yaml import BadYaml, read_mapping

PRESETS = ("chat", "code", "long")

_MAX_FILE_BYTES = 1 << 20
_MAX_TOKENS = 1 << 22

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Text = Annotated[str, StringConstraints(min_length=1)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
@dataclass(frozen=True)
class Workload:
    """One kind of request.

    depth_tokens lie in the context before the request, prompt_tokens come in, reply_tokens go out. texts: what the
    tokens are taken from, repeated when they are too few. sample_prompt: one prompt to try a model with.
    """

    name: Name
    description: Text
    depth_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
    prompt_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
    reply_tokens: Annotated[int, Field(ge=2, le=_MAX_TOKENS)]
    texts: Annotated[tuple[Text, ...], Field(min_length=1)]
    sample_prompt: Text

    @property
    def n_ctx_needed(self) -> int:
        """Positions one request occupies, its history included."""
        return self.depth_tokens + self.prompt_tokens + self.reply_tokens


_WORKLOAD = TypeAdapter(Workload)


def load_workload(name_or_path: str) -> Workload:
    """The preset of that name, or the workload in the user's own YAML file.

    A name without a dot or a slash is never looked up as a file, so that a folder called "chat" cannot hide a preset.
    """
    if name_or_path in PRESETS:
        with as_file(files("moetune.profiles") / "workloads" / f"{name_or_path}.yaml") as path:
            return _read(path)
    if not any(mark in name_or_path for mark in "./\\"):
        raise MoetuneError(
            f"There is no workload called {name_or_path!r}.",
            f"Use one of {', '.join(PRESETS)}, or the path of a YAML file of your own, such as ./mine.yaml.",
            ExitCode.USAGE,
        )
    workload = _read(Path(name_or_path))
    if workload.name in PRESETS:
        raise MoetuneError(
            f"The workload file {name_or_path} takes the name of the preset {workload.name!r}.",
            "Give it another `name:`, so that their profiles are not confused.",
            ExitCode.USAGE,
        )
    return workload


def _read(path: Path) -> Workload:
    try:
        return _WORKLOAD.validate_json(json.dumps(read_mapping(path, max_bytes=_MAX_FILE_BYTES)))
    except OSError as error:
        raise MoetuneError(
            f"The workload file {path} cannot be read: {error.strerror or error}.",
            f"Check the path, or use one of {', '.join(PRESETS)}.",
            ExitCode.USAGE,
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise _not_a_workload(path, f"{where}: {first['msg']}") from error
    except BadYaml as error:
        raise _not_a_workload(path, str(error)) from error


def _not_a_workload(path: Path, why: str) -> MoetuneError:
    return MoetuneError(
        f"{path} is not a workload: {why}.",
        "It needs name, description, depth_tokens, prompt_tokens, reply_tokens, texts (a list) and sample_prompt.",
        ExitCode.USAGE,
    )
