"""A picture as SVG."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from ..graph import Graph
from .edges import edge_styles
from .looks import BACKGROUND, FONT, GROUPS, OUTLINE, RADIUS, STYLES, UNKNOWN, corners
from .scene import Layout, Point
from .words import tooltip


def as_svg(graph: Graph, scene: Layout) -> bytes:
    w, h = math.ceil(scene.width), math.ceil(scene.height)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
        f'style="background:{BACKGROUND}" font-family={quoteattr(FONT)}>',
        f'<rect width="{w}" height="{h}" fill="{BACKGROUND}"/>',
    ]
    for curves, colour, stroke in edge_styles(scene):
        lines.append(f'<g fill="none" stroke="{colour}" stroke-width="{stroke}">')
        lines += [f'<path d="{_svg_path(c.points)}"/>' for c in curves]
        lines.append(f'</g><g fill="{colour}">')
        lines += [f'<path d="{_svg_path(c.head, polygon=True)}"/>' for c in curves if c.head]
        lines.append("</g>")
    lines.append(f'<g stroke="{OUTLINE}" stroke-width="0.7">')
    for node, (x, y) in zip(graph.nodes, scene.xy, strict=True):
        lines.append(_svg_marker(node.primitive, x, y, f"<title>{escape(tooltip(node))}</title>"))
    lines += [_svg_marker(primitive, x, y) for primitive, x, y in scene.legend]
    lines.append(f'</g><g stroke="{BACKGROUND}" stroke-width="3" stroke-linejoin="round" paint-order="stroke">')
    for t in scene.texts:
        weight = ' font-weight="bold"' if t.bold else ""
        lines.append(
            f'<text x="{t.x:.1f}" y="{t.y:.1f}" font-size="{t.size}" fill="{t.colour}"{weight}>{escape(t.text)}</text>'
        )
    lines.append("</g></svg>\n")
    return "\n".join(lines).encode()


def _svg_path(points: Sequence[Point], polygon: bool = False) -> str:
    start, *rest = (f"{x:.1f} {y:.1f}" for x, y in points)
    if polygon:
        return f"M{start}L{' '.join(rest)}Z"
    return f"M{start}{'L' if len(rest) == 1 else 'C'}{' '.join(rest)}"


def _svg_marker(primitive: str, x: float, y: float, inside: str = "") -> str:
    group, colour = STYLES.get(primitive, UNKNOWN)
    marker = GROUPS[group]
    if not marker.sides:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{colour}">{inside}</circle>'
    return f'<path d="{_svg_path(corners(marker, x, y), polygon=True)}" fill="{colour}">{inside}</path>'
