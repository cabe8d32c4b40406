"""What the parts of a picture look like."""

import math
from typing import NamedTuple


class Marker(NamedTuple):
    """A regular polygon (0 sides: a circle), as large as a circle of `scale` times the radius."""

    sides: int
    turn: float  # degrees, 0 is a corner at the top
    scale: float
    dot_shape: str


# Groups differ by marker, the primitives of a group by colour: with the eight hues of Okabe and Ito and their darker
# and lighter shades no two primitives of one marker are alike for a colour-blind reader or in grey.
GROUPS = {
    "weights": Marker(0, 0, 1.0, "circle"),
    "vectors": Marker(4, 45, 1.15, "square"),
    "pooling": Marker(3, 180, 1.3, "invtriangle"),
    "joins": Marker(4, 0, 1.2, "diamond"),
    "attention, gates": Marker(6, 0, 1.2, "hexagon"),
    "inputs": Marker(5, 0, 1.25, "pentagon"),
}
STYLES: dict[str, tuple[str, str]] = {
    "conv": ("weights", "#0072b2"),
    "sep_conv": ("weights", "#6ec1ef"),
    "dil_conv": ("weights", "#0b2e4f"),
    "bias": ("vectors", "#c4c4c4"),
    "bn": ("vectors", "#e69f00"),
    "ln": ("vectors", "#c04000"),
    "max_pool": ("pooling", "#00523c"),
    "avg_pool": ("pooling", "#009e73"),
    "glob_avg": ("pooling", "#8fdcc3"),
    "sum": ("joins", "#2b2b2b"),
    "concat": ("joins", "#9a9a9a"),
    "msa": ("attention, gates", "#d98cb3"),
    "cse": ("attention, gates", "#7a1f55"),
    "input": ("inputs", "#2b2b2b"),
    "pos_enc": ("inputs", "#f0e442"),
}
UNKNOWN = ("weights", "#ffffff")

BACKGROUND = "#ffffff"
INK = "#1f2933"
FAINT_INK = "#66707a"
OUTLINE = "#3a3a3a"
CHAIN = "#7b8794"
STAGE, BLOCK = "#f2f4f7", "#c9d0d8"  # filled, and outlined
SKIP, CROWDED_SKIP = "#b0573a", "#e4c5bb"
TIMES = "\N{MULTIPLICATION SIGN}"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
CHAR = 0.61  # mean width of a character in units of the font size

RADIUS = 5.5


def corners(marker: Marker, x: float, y: float) -> list[tuple[float, float]]:
    sides = marker.sides or 24
    angles = (math.radians(marker.turn + 360 * i / sides) for i in range(sides))
    radius = RADIUS * marker.scale
    return [(x + radius * math.sin(a), y - radius * math.cos(a)) for a in angles]
