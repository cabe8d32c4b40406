"""What a picture consists of, and where."""

from dataclasses import dataclass, field
from typing import NamedTuple

from ...graph import Graph
from .looks import INK

Point = tuple[float, float]
Points = tuple[Point, ...]


class Curve(NamedTuple):
    """An edge: two points (a line) or 3k + 1 (k cubic Bezier segments), and the tip of its arrow head."""

    points: Points
    skip: bool  # whether it jumps over layers
    head: Points  # a triangle


class Text(NamedTuple):
    x: float
    y: float
    text: str
    size: float
    colour: str = INK
    bold: bool = False


class Frame(NamedTuple):
    """A rectangle around the nodes of a stage or a block, as far as they stand in one column."""

    x: float
    y: float
    width: float
    height: float
    outer: bool  # whether there are other frames in it


class Shape(NamedTuple):
    """Something of one colour in the legend."""

    points: Points
    colour: str


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels, y downwards.

    Attributes:
        graph: whose nodes and edges these are; without those of equal blocks that are drawn once.
        xy: of the nodes.
        legend: primitive, x, y.
        samples: edges in the legend.
        note: by node, what its tooltip says besides.
    """

    title: str
    width: float
    height: float
    graph: Graph
    xy: list[Point]
    curves: list[Curve]
    texts: list[Text]
    legend: list[tuple[str, float, float]]
    samples: list[Shape] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    note: list[str] = field(default_factory=list)
