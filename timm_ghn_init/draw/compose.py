"""The whole layout of a picture."""

from ..graph import Graph
from .edges import curves
from .grid import MARGIN, Spacing, fold_rows, lanes, positions, rows
from .looks import CHAR, RADIUS
from .scene import Layout, Text
from .words import LABEL_SIZE, heading, label, legend

MOST_LABELLED_NODES = 200
LEAST_WIDTH = 520.0


def layout(graph: Graph, title: str) -> Layout:
    """Place nodes, edges, labels, heading and legend."""
    labels = [label(n) for n in graph.nodes] if len(graph.nodes) <= MOST_LABELLED_NODES else []
    label_width = max(map(len, labels), default=0) * LABEL_SIZE * CHAR
    spacing = Spacing(25.0, label_width + 2 * RADIUS + 16, 46.0) if labels else Spacing(19.0, 24.0, 36.0)
    row = rows(graph)
    fold = fold_rows(graph, row, lanes(graph, row), spacing)
    xy = positions(fold, spacing)
    lines = curves(graph, fold, xy, spacing)
    right = max(x for x, _ in xy) + (label_width if labels else 0) + 2 * RADIUS + MARGIN
    bottom = max(y for points in (xy, *(c.points for c in lines)) for _, y in points) + 30
    width = max(right, LEAST_WIDTH)
    markers, counts, end = legend(graph, width, bottom)
    texts = [Text(x + RADIUS + 5, y + LABEL_SIZE * 0.36, t, LABEL_SIZE) for t, (x, y) in zip(labels, xy, strict=False)]
    return Layout(title, width, end, xy, lines, [*texts, *heading(graph, title, width), *counts], markers)
