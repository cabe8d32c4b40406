"""A picture as SVG."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from .edges import edge_styles
from .looks import BACKGROUND, BLOCK, FONT, GROUPS, OUTLINE, RADIUS, STAGE, STYLES, UNKNOWN, corners
from .scene import Frame, Layout, Point
from .words import tooltip


def as_svg(scene: Layout) -> bytes:
    w, h = math.ceil(scene.width), math.ceil(scene.height)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
        f'style="background:{BACKGROUND}" font-family={quoteattr(FONT)}>',
        f'<rect width="{w}" height="{h}" fill="{BACKGROUND}"/>',
    ]
    lines += [_svg_frame(frame) for frame in scene.frames]
    for curves, colour, stroke in edge_styles(scene.curves):
        lines.append(f'<g fill="none" stroke="{colour}" stroke-width="{stroke}">')
        lines += [f'<path d="{_svg_path(c.points)}"/>' for c in curves]
        lines.append(f'</g><g fill="{colour}">')
        lines += [f'<path d="{_svg_path(c.head, polygon=True)}"/>' for c in curves]
        lines.append("</g>")
    lines += [f'<path d="{_svg_path(s.points, polygon=True)}" fill="{s.colour}"/>' for s in scene.samples]
    lines.append(f'<g stroke="{OUTLINE}" stroke-width="0.7">')
    for node, (x, y), note in zip(scene.graph.nodes, scene.xy, scene.note, strict=True):
        lines.append(_svg_marker(node.primitive, x, y, f"<title>{escape(tooltip(node, note))}</title>"))
    lines += [_svg_marker(primitive, x, y) for primitive, x, y in scene.legend]
    lines.append(f'</g><g stroke="{BACKGROUND}" stroke-width="3" stroke-linejoin="round" paint-order="stroke">')
    for t in scene.texts:
        weight = ' font-weight="bold"' if t.bold else ""
        lines.append(
            f'<text x="{t.x:.1f}" y="{t.y:.1f}" font-size="{t.size}" fill="{t.colour}"{weight}>{escape(t.text)}</text>'
        )
    lines.append("</g></svg>\n")
    return "\n".join(lines).encode()


def _svg_frame(frame: Frame) -> str:
    look = f'fill="{STAGE}"' if frame.outer else f'fill="none" stroke="{BLOCK}"'
    x, y, w, h, _ = frame
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="4" {look}/>'


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
