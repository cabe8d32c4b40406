"""How the edges run: straight along the chain, beside it where they skip layers, below and above to other columns."""

import math
from collections import Counter

from ...graph import Graph
from .grid import CLEAR, HEADER, Fold, Spacing
from .looks import CHAIN, CROWDED_SKIP, RADIUS, SKIP
from .scene import Curve, Point, Points

ARROW = 5.0
_APART = 4.0  # edges between columns, at the most
_CORNER = 6.0


def curves(graph: Graph, fold: Fold, xy: list[Point], spacing: Spacing) -> list[Curve]:
    occupied = set(zip(fold.row, fold.lane, strict=True))
    edges = graph.edges.tolist()
    into = Counter(fold.column(v) for u, v in edges if fold.column(u) != fold.column(v))
    track: Counter[int] = Counter()  # by column, how many edges have come from others
    curves = []
    for u, v in edges:
        column = fold.column(v)
        if fold.column(u) == column:
            points = _inside(u, v, fold, xy, occupied, spacing)
        else:
            points = _across(u, v, fold, xy, spacing, (track[column] + 0.5) / into[column])
            track[column] += 1
        points, head = arrow(points)
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
    if span > 1:
        beside = b[0] - _bow(v, span, fold, spacing)
        return rounded([a, (a[0], a[1] + step / 2), (beside, a[1] + step / 2), (beside, b[1]), b])
    return a, *_sway(a, b)


def _across(u: int, v: int, fold: Fold, xy: list[Point], spacing: Spacing, track: float) -> Points:
    """An edge to a later column: down, below the columns between, up in the gutter, and in from above or beside.

    Args:
        track: from 0 to 1, its place among the edges that come to this column from others.
    """
    a, b = xy[u], xy[v]
    first, last = fold.column(u), fold.column(v)
    y, left = fold.y(spacing), fold.left(spacing)
    room = min(CLEAR - 12, _APART * 6)
    below = max(y[end - 1] for end in fold.starts[first + 1 : last + 1]) + 14 + room * track
    above = HEADER - 8 - room * track
    gutter = left[last] + 3 + (spacing.gutter - 6) * track
    points = [a]
    if fold.row[u] + 1 != fold.starts[first + 1]:  # not at the end of its column: out beside the lane
        out = a[0] - _bow(u, fold.starts[first + 1] - fold.row[u], fold, spacing)
        points += [(out, a[1]), (out, below)]
    else:
        points.append((a[0], below))
    points += [(gutter, below), (gutter, above)]
    if fold.row[v] == fold.starts[last]:
        points += [(b[0], above), b]
    else:
        beside = b[0] - _bow(v, fold.row[v] - fold.starts[last] + 1, fold, spacing)
        points += [(beside, above), (beside, b[1]), b]
    return rounded(points)


def rounded(points: list[Point]) -> Points:
    """A line around corners as cubic segments."""
    result = [points[0]]

    def line(end: Point) -> None:
        result.extend((result[-1], end, end))

    for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
        lengths = math.hypot(x1 - x0, y1 - y0), math.hypot(x2 - x1, y2 - y1)
        if min(lengths) < 1e-6:
            continue
        r = min(_CORNER, *(length / 2 for length in lengths))
        start = (x1 + (x0 - x1) * r / lengths[0], y1 + (y0 - y1) * r / lengths[0])
        end = (x1 + (x2 - x1) * r / lengths[1], y1 + (y2 - y1) * r / lengths[1])
        line(start)
        result.extend(((x1, y1), (x1, y1), end))
    line(points[-1])
    return tuple(result)


def _bow(node: int, span: int, fold: Fold, spacing: Spacing) -> float:
    """How far beside the lane of a node an edge runs that skips `span` rows."""
    room = spacing.bow - 4 if fold.lane[node] == 0 else 0.55 * spacing.lane
    return min(room, 9 + 2.4 * span)


def _sway(a: Point, b: Point) -> Points:
    """From lane to lane, upright at both ends."""
    middle = (a[1] + b[1]) / 2
    return (a[0], middle), (b[0], middle), b


def arrow(points: Points) -> tuple[Points, Points]:
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


def edge_styles(curves: list[Curve]) -> list[tuple[list[Curve], str, float]]:
    """Edges to draw, first those at the bottom: their colour and width. First those that skip rows, then the others."""
    skips = [c for c in curves if c.skip]
    chain = [c for c in curves if not c.skip]
    crowded = len(skips) > len(chain)  # as in DenseNet, where they would hide the chain
    return [(skips, CROWDED_SKIP if crowded else SKIP, 1.1), (chain, CHAIN, 1.4)]
