"""Where the nodes are: rows (layers), lanes (branches side by side), and columns that the rows are folded into."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from ...graph import Graph
from .scene import Point

ASPECT = 1.6
MARGIN = 28.0
HEADER, LEGEND = 112.0, 82.0  # where the columns may begin; about the height of the legend
NAME = 13.0  # the height of a frame's name
TOP = HEADER + 2 * NAME  # the y of the first row
CLEAR = 28.0  # above and below the columns, for edges from one to another
_TORN = 1.5  # what a break within a block costs, in edges that cross it


class Spacing(NamedTuple):
    """Pixels.

    Attributes:
        row: between rows.
        lane: between lanes.
        bow: left of a column's first lane, for edges that skip rows.
        gutter: left of that, for edges between columns.
        least: width of a column.
    """

    row: float
    lane: float
    bow: float
    gutter: float
    least: float = 0.0


class Fold(NamedTuple):
    """Nodes on the grid.

    Attributes:
        row, lane: of each node.
        starts: the first row of every column, with the end.
        above: of each row, the extra room above it.
    """

    row: list[int]
    lane: list[int]
    starts: list[int]
    above: Sequence[float]

    def column(self, node: int) -> int:
        return bisect_right(self.starts, self.row[node]) - 1

    def heights(self, spacing: Spacing) -> list[float]:
        """[r]: from the top of a column that begins with row 0 to row r, had it all rows."""
        return list(accumulate(extra + spacing.row * (r > 0) for r, extra in enumerate(self.above)))

    def y(self, spacing: Spacing) -> list[float]:
        """Of each row."""
        heights = self.heights(spacing)
        return [TOP + heights[r] - heights[a] for a, b in pairwise(self.starts) for r in range(a, b)]

    def left(self, spacing: Spacing) -> list[float]:
        """The left side of each column, and the right side of the last."""
        lanes = [1] * (len(self.starts) - 1)
        for node, lane in enumerate(self.lane):
            lanes[self.column(node)] = max(lanes[self.column(node)], lane + 1)
        widths = (spacing.gutter + max(n * spacing.lane + spacing.bow, spacing.least) for n in lanes)
        return list(accumulate(widths, initial=MARGIN))


def _neighbours(graph: Graph) -> tuple[list[list[int]], list[list[int]]]:
    """Predecessors and successors of each node."""
    before: list[list[int]] = [[] for _ in graph.nodes]
    after: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges.tolist():
        before[v].append(u)
        after[u].append(v)
    return before, after


def rows(graph: Graph) -> list[int]:
    """The layer of each node, its longest path from a source; sources other than the input just before their use."""
    before, after = _neighbours(graph)
    row: list[int] = []
    for sources in before:
        row.append(max((row[u] + 1 for u in sources), default=0))
    for v, sources in enumerate(before):
        if v and not sources and after[v]:
            row[v] = max(0, min(row[w] for w in after[v]) - 1)
    return row


def lanes(graph: Graph, row: list[int]) -> list[int]:
    """The lane of each node: that of a predecessor if it is free, the longest branch first, so that it runs straight.

    A lane stays reserved from the end of a branch to the row where the branch joins the others.
    """
    before, after = _neighbours(graph)
    n = len(row)
    to_end = [0] * n
    for v in reversed(range(n)):
        to_end[v] = max((to_end[w] + 1 for w in after[v]), default=0)
    lane = [0] * n
    reserved: list[int] = []  # the last row that a lane is not free in
    for v in sorted(range(n), key=lambda v: (row[v], -to_end[v], v)):
        wanted = min((lane[u] for u in before[v]), default=0)
        reserved.append(-1)  # one more lane is always free
        lane[v] = min((i for i, until in enumerate(reserved) if until < row[v]), key=lambda i: abs(i - wanted))
        reserved[lane[v]] = max(row[v], min((row[w] for w in after[v]), default=0) - 1)
        if reserved[-1] < 0:
            reserved.pop()
    return lane


def fold_rows(
    graph: Graph, row: list[int], lane: list[int], spacing: Spacing, above: Sequence[float], inside: Sequence[bool]
) -> Fold:
    """Fold the rows into columns such that the picture is about ASPECT times as wide as it is high.

    Args:
        above: as in `Fold`.
        inside: of each row, whether a break in front of it would tear a block apart.
    """
    n_rows = max(row) + 1
    crossing = [c + _TORN * torn for c, torn in zip(_crossing(graph, row), [*inside, False], strict=True)]

    def off(fold: Fold) -> float:
        width = fold.left(spacing)[-1] + MARGIN
        height = max(fold.y(spacing)) + CLEAR + LEGEND
        return abs(math.log(width / height / ASPECT))

    lanes = Counter[int]()
    for r, i in zip(row, lane, strict=True):
        lanes[r] = max(lanes[r], i + 1)
    column_width = max(sum(lanes.values()) / n_rows * spacing.lane + spacing.bow, spacing.least) + spacing.gutter
    guess = math.sqrt(ASPECT * (n_rows * spacing.row + sum(above)) / column_width)
    counts = {max(1, round(guess * factor / 10)) for factor in range(5, 16)}
    folds = [Fold(row, lane, _breaks(crossing, n_rows, c), above) for c in sorted(counts)]
    return min(folds, key=off)


def _crossing(graph: Graph, row: list[int]) -> list[int]:
    """[r]: how many nodes before row r have successors from row r on: what a break in front of r cuts apart."""
    reach = list(row)
    for u, v in graph.edges.tolist():
        reach[u] = max(reach[u], row[v])
    change = Counter(r + 1 for r in row)
    change.subtract(r + 1 for r in reach)
    return list(accumulate(change[r] for r in range(max(row) + 2)))


def _breaks(crossing: Sequence[float], n_rows: int, columns: int) -> list[int]:
    """First rows of about that many columns, of about equal length, with few edges cut: dynamic programming."""
    length = math.ceil(n_rows / columns)
    shortest, longest = max(1, round(0.75 * length)), max(1, round(1.25 * length))
    best = [0.0] + [math.inf] * n_rows  # [end]: the least cost of folding the rows before it
    previous = [0] * (n_rows + 1)
    for end in range(1, n_rows + 1):
        last = end == n_rows
        for start in range(max(0, end - longest), end - (1 if last else shortest) + 1):
            uneven = ((end - start) / length - 1) ** 2 * 4
            cost = best[start] + uneven + (0 if last else crossing[end])
            if cost < best[end]:
                best[end], previous[end] = cost, start
    starts = [n_rows]
    while starts[-1]:
        starts.append(previous[starts[-1]])
    return starts[::-1]


def positions(fold: Fold, spacing: Spacing) -> list[Point]:
    """Pixels of the nodes. All columns run down."""
    left, y = fold.left(spacing), fold.y(spacing)
    before = spacing.gutter + spacing.bow
    return [
        (left[fold.column(node)] + before + lane * spacing.lane, y[row])
        for node, (row, lane) in enumerate(zip(fold.row, fold.lane, strict=True))
    ]
