"""YAML from files that anyone may have written: bounded in size and depth, plain values only, no aliases."""

import json
from pathlib import Path
from typing import Any

import yaml

_MAX_DEPTH = 16


class BadYaml(ValueError):
    """The text is not YAML of the plain kind read here; the message says why."""


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which let a file of a kilobyte expand to gigabytes, deep nesting and repeated keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise BadYaml("aliases are not allowed")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadYaml(f"nested deeper than {_MAX_DEPTH} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise BadYaml(f"the key {key.value!r} appears twice")
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_mapping(path: Path, *, max_bytes: int, empty: bool = False) -> dict[str, Any]:
    """The mapping in the file at `path`; with `empty` also what says nothing. Raises `BadYaml` on anything else.

    Raises `OSError` when the file cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise BadYaml(f"larger than {max_bytes} bytes")
    try:
        data = yaml.load(raw.decode("utf-8"), _PlainLoader)  # noqa: S506  (a SafeLoader, made stricter)
        # The way through JSON leaves text, numbers, truth values, lists and mappings: no dates, sets, NaN or bytes.
        data = json.loads(json.dumps(data, allow_nan=False))
    except BadYaml:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}" if mark else ""
        raise BadYaml(f"not valid YAML{where}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise BadYaml(f"not plain YAML text: {str(error).splitlines()[0]}") from error
    if data is None and empty:
        return {}
    if not isinstance(data, dict):
        raise BadYaml("not a mapping of names to values")
    return data
