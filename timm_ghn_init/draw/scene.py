"""What a picture consists of, and where."""

from dataclasses import dataclass
from typing import NamedTuple

from .looks import INK

Point = tuple[float, float]
Points = tuple[Point, ...]


class Curve(NamedTuple):
    """An edge: two points (a line) or 3k + 1 (k cubic Bezier segments), and the tip of its arrow head."""

    points: Points
    skip: bool  # whether it jumps over layers
    head: Points  # a triangle, or empty where there is no room


class Text(NamedTuple):
    x: float
    y: float
    text: str
    size: float
    colour: str = INK
    bold: bool = False


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels, y downwards."""

    title: str
    width: float
    height: float
    xy: list[Point]  # of the nodes
    curves: list[Curve]
    texts: list[Text]
    legend: list[tuple[str, float, float]]  # primitive, x, y
