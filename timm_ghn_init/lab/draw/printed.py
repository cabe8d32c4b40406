"""A picture as PNG or PDF, by matplotlib."""

import io
from collections.abc import Sequence
from typing import Any

from .edges import edge_styles
from .looks import BACKGROUND, BLOCK, GROUPS, OUTLINE, STAGE, STYLES, UNKNOWN, corners
from .scene import Layout, Point


def as_png(scene: Layout) -> bytes:
    return _printed(scene, "png", {"Software": None})


def as_pdf(scene: Layout) -> bytes:
    return _printed(scene, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def _printed(scene: Layout, form: str, metadata: dict[str, None]) -> bytes:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f'A .{form} is drawn by matplotlib, which is not installed: pip install "timm-ghn-init[plot]", '
            "or write a .svg or .dot, which need nothing."
        ) from error
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # text stays text
        _figure(scene).savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def _figure(scene: Layout) -> Any:
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch
    from matplotlib.path import Path as Outline
    from matplotlib.patheffects import withStroke

    def polygon(points: Sequence[Point]) -> Any:
        return Outline([*points, points[0]], closed=True)

    def edge(points: Sequence[Point]) -> Any:
        curve = Outline.LINETO if len(points) == 2 else Outline.CURVE4
        return Outline(points, [Outline.MOVETO] + [curve] * (len(points) - 1))

    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=144, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    for x, y, width, height, outer in scene.frames:
        look = {"fc": STAGE, "ec": "none"} if outer else {"fc": "none", "ec": BLOCK, "lw": 1}
        axes.add_patch(FancyBboxPatch((x + 4, y + 4), width - 8, height - 8, boxstyle="round,pad=4", zorder=0, **look))
    for curves, colour, stroke in edge_styles(scene.curves):
        lines = [edge(c.points) for c in curves]
        axes.add_collection(PathCollection(lines, facecolors="none", edgecolors=colour, linewidths=stroke))
        axes.add_collection(PathCollection([polygon(c.head) for c in curves], facecolors=colour, linewidths=0))
    samples = [polygon(s.points) for s in scene.samples]
    axes.add_collection(PathCollection(samples, facecolors=[s.colour for s in scene.samples], linewidths=0))
    nodes = [(n.primitive, x, y) for n, (x, y) in zip(scene.graph.nodes, scene.xy, strict=True)] + scene.legend
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
    return figure
