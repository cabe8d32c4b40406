"""How the edges run: straight along the chain, beside it where they skip layers."""

import math
from collections import Counter

from ..graph import Graph
from .grid import Fold, Spacing
from .looks import CHAIN, CROWDED_SKIP, RADIUS, SKIP
from .scene import Curve, Layout, Point, Points

ARROW = 5.0
MOST_ARROWS_INTO_A_NODE = 3


def curves(graph: Graph, fold: Fold, xy: list[Point], spacing: Spacing) -> list[Curve]:
    occupied = set(zip(fold.row, fold.lane, strict=True))
    arriving = Counter(v for _, v in graph.edges.tolist())
    curves = []
    for u, v in graph.edges.tolist():
        if fold.column(u) == fold.column(v):
            points = _inside(u, v, fold, xy, occupied, spacing)
        else:
            points = _across(u, v, fold, xy, spacing)
        head: Points = ()
        if arriving[v] <= MOST_ARROWS_INTO_A_NODE:
            points, head = _arrow(points)
        curves.append(Curve(points, fold.row[v] - fold.row[u] > 1, head))
    return curves


def _inside(u: int, v: int, fold: Fold, xy: list[Point], occupied: set[tuple[int, int]], spacing: Spacing) -> Points:
    """An edge within a column: straight where nothing is in its way, else beside the lane or in the other lane."""
    a, b = xy[u], xy[v]
    span = fold.row[v] - fold.row[u]
    own_free, other_free = (
        not any((r, fold.lane[n]) in occupied for r in range(fold.row[u] + 1, fold.row[v])) for n in (u, v)
    )
    if fold.lane[u] == fold.lane[v]:
        if own_free:
            return a, b
        out = a[0] - _bow(v, span, fold, spacing) / 0.75  # a cubic reaches 3/4 of the way to its control points
        return a, (out, a[1]), (out, b[1]), b
    step = (b[1] - a[1]) / span
    if span > 1 and own_free:
        corner = (a[0], b[1] - step)
        return a, a, corner, corner, *_sway(corner, b)
    if span > 1 and other_free:
        corner = (b[0], a[1] + step)
        return a, *_sway(a, corner), corner, b, b
    return a, *_sway(a, b)


def _across(u: int, v: int, fold: Fold, xy: list[Point], spacing: Spacing) -> Points:
    """An edge to another column: around the turn of the snake from the end of a column, else directly."""
    a, b = xy[u], xy[v]
    column = fold.column(u)
    down = 1 if column % 2 == 0 else -1
    span = fold.row[v] - fold.row[u]
    if span == 1:
        dip = a[1] + 22 * down
        return a, (a[0], dip), (b[0], dip), b
    if fold.row[u] + 1 == fold.starts[column + 1] and fold.column(v) == column + 1:
        dip, x = a[1] + 16 * down, b[0] - _bow(v, span, fold, spacing)
        return a, (a[0], dip), (x, dip), (x, a[1]), (x, (a[1] + b[1]) / 2), (x, b[1]), b
    middle = (a[0] + b[0]) / 2
    return a, (middle, a[1]), (middle, b[1]), b


def _bow(node: int, span: int, fold: Fold, spacing: Spacing) -> float:
    """How far beside the lane of a node an edge runs that skips `span` rows."""
    room = spacing.bow - 4 if fold.lane[node] == 0 else 0.55 * spacing.lane
    return min(room, 9 + 2.4 * span)


def _sway(a: Point, b: Point) -> Points:
    """From lane to lane, upright at both ends."""
    middle = (a[1] + b[1]) / 2
    return (a[0], middle), (b[0], middle), b


def _arrow(points: Points) -> tuple[Points, Points]:
    """Cut an edge off where its last node begins, and put an arrow head there."""
    x, y = points[-1]
    from_x, from_y = next(p for p in reversed(points) if p != points[-1])
    length = math.hypot(x - from_x, y - from_y)
    dx, dy = (x - from_x) / length, (y - from_y) / length
    tip = (x - dx * RADIUS * 1.15, y - dy * RADIUS * 1.15)
    back = (tip[0] - dx * ARROW, tip[1] - dy * ARROW)
    side = 0.45 * ARROW
    head = (tip, (back[0] - dy * side, back[1] + dx * side), (back[0] + dy * side, back[1] - dx * side))
    return (*points[:-1], back), head


def edge_styles(scene: Layout) -> list[tuple[list[Curve], str, float]]:
    """Edges to draw, first those at the bottom: their colour and width."""
    skips = [c for c in scene.curves if c.skip]
    chain = [c for c in scene.curves if not c.skip]
    crowded = len(skips) > len(chain)  # as in DenseNet, where they would hide the chain
    return [(skips, CROWDED_SKIP if crowded else SKIP, 1.1), (chain, CHAIN, 1.4)]
