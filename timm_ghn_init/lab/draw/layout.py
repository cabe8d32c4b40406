"""Positions of nodes and frames: rows (layers), lanes (parallel branches), and columns that the rows are cut into."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from ...graph import Graph
from .blocks import Places, runs

ASPECT = 1.6
ROW = 25.0  # points from one row to the next
GUTTER = 44.0  # points between the last lane of a column and the first of the next
NAME = 13.0  # height of a frame's name
_TORN = 1.5  # cost of a break within a block, in edges that the break cuts


class Frame(NamedTuple):
    """A rectangle around the nodes of a stage or a block within one column; `outer` if other frames are inside it."""

    name: str
    x: float
    y: float
    width: float
    height: float
    outer: bool


class Layout(NamedTuple):
    """Positions in points (1/72 inch), y downwards; the first row is at 0.

    Attributes:
        row, lane, column, xy: of each node.
        left: x at which each column begins, and at which the last one ends.
        bottom: y of the last row of each column.
        frames: outer frames first.
    """

    row: list[int]
    lane: list[int]
    column: list[int]
    xy: list[tuple[float, float]]
    left: list[float]
    bottom: list[float]
    frames: list[Frame]


def layout(graph: Graph, places: list[Places], names: dict[str, str], width: float) -> Layout:
    """Place the nodes of a graph.

    Args:
        graph: what to draw.
        places: as `blocks.places` gives them.
        names: what the frame of a stage or block is called.
        width: of a lane.
    """
    row = _rows(graph)
    lane = _lanes(graph, row)
    framed = [runs(row, places, depth) for depth in (0, 1)]
    above = [0.0] * (max(row) + 1)  # extra space for the names of frames
    for _, start, _ in [run for level in framed for run in level]:
        above[start] += NAME
    inside = {r for _, start, end in framed[-1] or framed[0] for r in range(start + 1, end)}
    starts = _columns(graph, row, GUTTER + width * min(max(lane) + 1, 3), above, inside)
    column_of_row = [i for i, (a, b) in enumerate(pairwise(starts)) for _ in range(a, b)]
    y = [h for a, b in pairwise(starts) for h in accumulate(above[r] + ROW * (r > a) for r in range(a, b))]
    column = [column_of_row[r] for r in row]
    lanes = Counter[int]()
    for c, i in zip(column, lane, strict=True):
        lanes[c] = max(lanes[c], i + 1)
    left = list(accumulate((GUTTER + lanes[c] * width for c in range(len(starts) - 1)), initial=0.0))
    xy = [(left[c] + GUTTER + i * width, y[r]) for r, i, c in zip(row, lane, column, strict=True)]
    bottom = [y[end - 1] for end in starts[1:]]
    return Layout(row, lane, column, xy, left, bottom, list(_frames(framed, names, starts, left, y)))


def _neighbours(graph: Graph) -> tuple[list[list[int]], list[list[int]]]:
    """Predecessors and successors of each node."""
    before: list[list[int]] = [[] for _ in graph.nodes]
    after: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges.tolist():
        before[v].append(u)
        after[u].append(v)
    return before, after


def _rows(graph: Graph) -> list[int]:
    """The length of the longest path to each node; a source other than the input comes just before its first use."""
    before, after = _neighbours(graph)
    row: list[int] = []
    for sources in before:
        row.append(max((row[u] + 1 for u in sources), default=0))
    for v, sources in enumerate(before):
        if v and not sources and after[v]:
            row[v] = max(0, min(row[w] for w in after[v]) - 1)
    return row


def _lanes(graph: Graph, row: list[int]) -> list[int]:
    """The lane of each node: that of a predecessor if it is free. The longest branch comes first, so it runs straight.

    A lane stays reserved from the end of a branch to the row where the branch joins the others.
    """
    before, after = _neighbours(graph)
    n = len(row)
    to_end = [0] * n
    for v in reversed(range(n)):
        to_end[v] = max((to_end[w] + 1 for w in after[v]), default=0)
    lane = [0] * n
    reserved: list[int] = []  # the last row in which a lane is not free
    for v in sorted(range(n), key=lambda v: (row[v], -to_end[v], v)):
        wanted = min((lane[u] for u in before[v]), default=0)
        reserved.append(-1)  # one more lane is always free
        lane[v] = min((i for i, until in enumerate(reserved) if until < row[v]), key=lambda i: abs(i - wanted))
        reserved[lane[v]] = max(row[v], min((row[w] for w in after[v]), default=0) - 1)
        if reserved[-1] < 0:
            reserved.pop()
    return lane


def _columns(graph: Graph, row: list[int], width: float, above: list[float], inside: set[int]) -> list[int]:
    """First row of each column, and the end: about as many columns as make the picture ASPECT times as wide as high.

    A column ends within a quarter of its length from where equal columns would end, where the break cuts few edges.
    """
    n_rows = max(row) + 1
    reach = list(row)  # the last row of a node's successors
    for u, v in graph.edges.tolist():
        reach[u] = max(reach[u], row[v])
    change = Counter(r + 1 for r in row)
    change.subtract(r + 1 for r in reach)
    cut = list(accumulate(change[r] for r in range(n_rows + 1)))  # by a break before each row: nodes with edges over it
    n_columns = max(1, round(math.sqrt(ASPECT * (n_rows * ROW + sum(above)) / width)))
    length = math.ceil(n_rows / n_columns)
    starts = [0]
    while n_rows - starts[-1] > 1.25 * length:
        ideal = starts[-1] + length
        near = range(ideal - length // 4, ideal + length // 4 + 1)
        starts.append(min((cut[r] + _TORN * (r in inside) + abs(r - ideal) / length, r) for r in near)[1])
    return [*starts, n_rows]


def _frames(
    framed: list[list[tuple[str, int, int]]],
    names: dict[str, str],
    starts: list[int],
    left: list[float],
    y: list[float],
) -> Iterator[Frame]:
    """A frame around each run of rows, in each column that contains a part of it."""
    inner = {(start, end) for _, start, end in framed[-1]}
    for depth, level in enumerate(framed):
        for name, start, end in level:
            outer = depth == 0 and any(start <= s and e <= end for s, e in inner)
            for column, (first, last) in enumerate(pairwise(starts)):
                a, b = max(start, first), min(end, last)
                if a >= b:
                    continue
                inset = 0 if outer else 4
                top = y[a] - 0.45 * ROW - NAME * (1 + (outer and a in {s for s, _ in inner})) - 3
                x, right = left[column] + GUTTER / 2 + inset, left[column + 1] + GUTTER / 2 - 6 - inset
                shown = names[name] + ("" if a == start else " ...")
                yield Frame(shown, x, top, right - x, y[b - 1] + 0.45 * ROW - inset / 2 - top, outer)
