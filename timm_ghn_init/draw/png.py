"""A picture as PNG, by matplotlib."""

import io
from collections.abc import Sequence
from typing import Any

from ..graph import Graph
from .edges import edge_styles
from .looks import BACKGROUND, GROUPS, OUTLINE, STYLES, UNKNOWN, corners
from .scene import Layout, Point


def as_png(graph: Graph, scene: Layout) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PathCollection
        from matplotlib.figure import Figure
        from matplotlib.path import Path as Outline
        from matplotlib.patheffects import withStroke
    except ImportError as error:
        raise ImportError(
            'A .png is drawn by matplotlib, which is not installed: pip install "timm-ghn-init[plot]", '
            "or write a .svg or .dot, which need nothing."
        ) from error

    def polygon(points: Sequence[Point]) -> Any:
        return Outline([*points, points[0]], closed=True)

    def edge(points: Sequence[Point]) -> Any:
        curve = Outline.LINETO if len(points) == 2 else Outline.CURVE4
        return Outline(points, [Outline.MOVETO] + [curve] * (len(points) - 1))

    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=144, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    for curves, colour, stroke in edge_styles(scene):
        lines = [edge(c.points) for c in curves]
        axes.add_collection(PathCollection(lines, facecolors="none", edgecolors=colour, linewidths=stroke))
        heads = [polygon(c.head) for c in curves if c.head]
        axes.add_collection(PathCollection(heads, facecolors=colour, linewidths=0))
    nodes = [(n.primitive, x, y) for n, (x, y) in zip(graph.nodes, scene.xy, strict=True)] + scene.legend
    styles = [STYLES.get(primitive, UNKNOWN) for primitive, _, _ in nodes]
    shapes = [polygon(corners(GROUPS[g], x, y)) for (_, x, y), (g, _) in zip(nodes, styles, strict=True)]
    colours = [colour for _, colour in styles]
    axes.add_collection(PathCollection(shapes, facecolors=colours, edgecolors=OUTLINE, linewidths=0.7, zorder=2))
    for t in scene.texts:
        weight = "bold" if t.bold else "normal"
        axes.text(
            t.x, t.y, t.text, size=t.size, color=t.colour, weight=weight, va="baseline", parse_math=False, zorder=3,
            path_effects=[withStroke(linewidth=2.5, foreground=BACKGROUND)],
        )  # fmt: skip
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
