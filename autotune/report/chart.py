"""A chart as data: what it shows, in which units, and why it is empty where it is. Knows no drawing library."""

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """How a series is drawn. STEPS: a line that holds each value until the next one."""

    POINTS = "points"
    HOLLOW = "hollow"
    BARS = "bars"
    STEPS = "steps"


@dataclass(frozen=True)
class Point:
    """One value. label: shown on pointing at it; tag: always. shade: a third value, as colour.

    spread: what it lies between, along the axis that is measured.
    """

    x: float
    y: float
    label: str = ""
    spread: tuple[float, float] | None = None
    shade: float | None = None
    tag: str = ""


@dataclass(frozen=True)
class Series:
    """Points under one name in the legend."""

    name: str
    points: tuple[Point, ...]
    mark: Mark = Mark.POINTS


@dataclass(frozen=True)
class Axis:
    """title: with its unit. rows: names for 0, 1, 2, …, from the top down. limits: what is shown; None for all."""

    title: str
    log: bool = False
    limits: tuple[float, float] | None = None
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guide:
    """A line at one value of the axis that is measured; the first of a chart is dashed, the next one dotted."""

    value: float
    label: str


@dataclass(frozen=True)
class Chart:
    """key: its name in files and links. caption: how to read it. empty: why there is nothing to draw, "" if there is.

    Measured is the y axis, but where it has rows: then it is the x axis.
    """

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()
    shade_title: str = ""
    empty: str = ""
