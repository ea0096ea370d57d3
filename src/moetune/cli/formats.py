"""How a result is printed: a table for people, JSON or YAML for programs."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml


class Format(StrEnum):
    """What `--format` takes."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Printed = Annotated[Format, typer.Option("--format", help="For people a table, for programs JSON or YAML.")]


def written(data: dict[str, Any] | list[Any], form: Format) -> str:
    """`data` as JSON, or as YAML when that is asked for; characters that are not for the eye are escaped."""
    as_json = json.dumps(data, indent=2)
    if form is not Format.YAML:
        return as_json
    # The way through JSON leaves plain values, where PyYAML knows no tuples and enumerations.
    return yaml.safe_dump(json.loads(as_json), sort_keys=False, allow_unicode=True).rstrip()
