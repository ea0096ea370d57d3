"""The file of defaults: under each command's name, its flags by their long names.

run:
  max-tokens: 512
study:
  list: {storage: "postgresql://tuner@host/moetune"}
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from moetune.errors import ExitCode, MoetuneError
from moetune.profiles.store import CONFIG_DIR_VARIABLE
from moetune.safe_yaml import BadYaml, read_mapping

_MAX_BYTES = 1 << 16
_NOT_HERE = ("help", "version", "install-completion", "show-completion")


def config_path() -> Path:
    """`config.yaml` in `MOETUNE_CONFIG_DIR` when that is set, else in the user's config folder."""
    override = os.environ.get(CONFIG_DIR_VARIABLE)
    return (Path(override) if override else user_config_path("moetune")) / "config.yaml"


def read_defaults(program: Any) -> dict[str, Any]:
    """What the file says, as a `default_map` for `program`, typer's group; empty when there is no file.

    Raises MoetuneError: STORAGE when it cannot be read, USAGE for a command or flag there is not and for what no flag
    can be. Whether a value is one that its flag takes is found out where the flag is used.
    """
    path = config_path()
    try:
        return _command(program, read_mapping(path, max_bytes=_MAX_BYTES, empty=True), "moetune", path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise MoetuneError(
            f"The config file {path} cannot be read: {error.strerror or error}.",
            f"Make it readable, or set {CONFIG_DIR_VARIABLE} to another folder.",
            ExitCode.STORAGE,
        ) from error
    except BadYaml as error:
        raise _bad(path, f"{error}", "Commands are its keys, and flags' long names the keys below them.") from error


def _command(command: Any, given: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    below = getattr(command, "commands", {})
    if below:
        return {key: _subcommand(below, key, value, name, path) for key, value in given.items()}
    flags = {flag.removeprefix("--"): (p, flag in p.opts) for p in command.params for flag in _long_names(p)}
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        if key not in flags or key in _NOT_HERE:
            raise _bad(path, f"{name} has no flag {key!r}", _nearest(key, set(flags) - set(_NOT_HERE)))
        parameter, is_positive = flags[key]
        defaults[parameter.name] = _value(parameter, value, is_positive, f"{name}, {key}", path)
    return defaults


def _subcommand(below: Mapping[str, Any], key: str, value: object, name: str, path: Path) -> dict[str, Any]:
    if key not in below:
        raise _bad(path, f"{name} has no command {key!r}", _nearest(key, set(below)))
    if not isinstance(value, dict):
        raise _bad(
            path, f"{key} has no flags below it", f"Write the flags of `{name} {key}` under it, or leave it out."
        )
    return _command(below[key], value, f"{name} {key}", path)


def _long_names(parameter: Any) -> list[str]:
    return [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]


def _value(parameter: Any, value: object, is_positive: bool, where: str, path: Path) -> Any:
    """What click takes for it: a truth value for a switch, else text as on the command line, or a list of that."""
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise _bad(path, f"{where} is {value!r}", "It is a switch: write true or false.")
        return value == is_positive
    many = value if isinstance(value, list) and parameter.multiple else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in many):
        plural = ", or a list of them" if parameter.multiple else ""
        raise _bad(path, f"{where} is {value!r}", f"Write one text or number{plural}.")
    texts = [str(each) for each in many]
    return texts if parameter.multiple else texts[0]


def _nearest(key: str, known: set[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Use one of {', '.join(sorted(known))}."


def _bad(path: Path, what: str, remedy: str) -> MoetuneError:
    return MoetuneError(f"The config file {path} cannot be used: {what}.", remedy, ExitCode.USAGE)
