"""The whole layout of a picture."""

from collections.abc import Iterator
from itertools import pairwise

from ...graph import Graph
from .blocks import Folded, Places, fold, places, runs
from .edges import curves
from .grid import CLEAR, MARGIN, NAME, Fold, Spacing, fold_rows, lanes, positions, rows
from .looks import CHAR, FAINT_INK, RADIUS, TIMES
from .scene import Frame, Layout, Text
from .words import LABEL_SIZE, NAME_SIZE, heading, label, legend, width_of

MOST_LABELLED_NODES = 200
LEAST_WIDTH = 640.0


def layout(graph: Graph, title: str, *, labels: bool | None = None, folded: bool = False) -> Layout:
    """Place nodes, edges, labels, frames, heading and legend.

    Args:
        labels: whether nodes have labels. Default: up to `MOST_LABELLED_NODES` of them have.
        folded: draw each row of equal blocks once.
    """
    shown = fold(graph) if folded else Folded(graph, places(graph), {})
    names = _names(shown.places, shown.times)
    labelled = len(shown.graph.nodes) <= MOST_LABELLED_NODES if labels is None else labels
    written = [label(n) for n in shown.graph.nodes] if labelled else []
    label_width = max(map(len, written), default=0) * LABEL_SIZE * CHAR
    name_width = max((width_of(name, NAME_SIZE) for name in names.values()), default=0.0) + 16
    row = rows(shown.graph)
    framed = [runs(row, shown.places, depth) for depth in (0, 1)]
    above = [0.0] * (max(row) + 1)
    inside = [False] * len(above)
    for name, start, end in [run for level in framed for run in level]:
        above[start] += NAME
        if name not in {p[0] for p in shown.places if len(p) > 1}:  # stages may be torn
            inside[start + 1 : end] = [True] * (end - start - 1)
    if written:
        spacing = Spacing(25.0, label_width + 2 * RADIUS + 16, 40.0, 18.0, name_width)
    else:
        spacing = Spacing(19.0, 24.0, 30.0, 18.0, name_width)
    grid = fold_rows(shown.graph, row, lanes(shown.graph, row), spacing, above, inside)
    xy = positions(grid, spacing)
    frames, titles = _frames(framed, grid, spacing, names)
    right = grid.left(spacing)[-1] + MARGIN
    width = max(right, LEAST_WIDTH)
    lines = curves(shown.graph, grid, xy, spacing)
    markers, samples, counts, height = legend(shown.graph, lines, width, max(grid.y(spacing)) + CLEAR + 12)
    texts = [Text(x + RADIUS + 5, y + LABEL_SIZE * 0.36, t, LABEL_SIZE) for t, (x, y) in zip(written, xy, strict=False)]
    texts += [*titles, *heading(graph, title, width, bool(shown.times)), *counts]
    note = [_note(p, shown.times) for p in shown.places]
    return Layout(title, width, height, shown.graph, xy, lines, texts, markers, samples, frames, note)


def _names(places: list[Places], times: dict[str, int]) -> dict[str, str]:
    """What a frame is called: a block without the stage that it stands in, and how many there are."""
    found = {}
    for p in places:
        for outer, name in pairwise(("", *p[:2])):
            own = name.removeprefix(f"{outer}.") if outer else name
            own = name if own.isdigit() else own
            found[name] = f"{own} {TIMES} {times[name]}" if name in times else own
    return found


def _note(place: Places, times: dict[str, int]) -> str:
    alike = [f"{name} and {times[name] - 1} more alike" for name in place if name in times]
    return ", ".join(alike)


def _frames(
    framed: list[list[tuple[str, int, int]]], grid: Fold, spacing: Spacing, names: dict[str, str]
) -> tuple[list[Frame], list[Text]]:
    """A frame around each run of rows, in each column that it stands in, and its name above the first row."""
    y, left, pad = grid.y(spacing), grid.left(spacing), 0.45 * spacing.row
    begins = {start for _, start, _ in framed[-1]}
    frames, texts = [], []
    for depth, level in enumerate(framed):
        for name, start, end in level:
            outer = any(start <= s and e <= end for inner in framed[depth + 1 :] for _, s, e in inner)
            for column, a, b in _pieces(start, end, grid.starts):
                lines = 1 + (outer and a in begins)  # of names between the frame's upper side and its first row
                inset = 0 if outer else 4
                top = y[a] - pad - NAME * lines - 3
                x, right = left[column] + spacing.gutter - 6 + inset, left[column + 1] - 2 - inset
                frames.append(Frame(x, top, right - x, y[b - 1] + pad - inset / 2 - top, outer))
                text = names[name] if a == start else f"{names[name]} ..."
                texts.append(Text(x + 5, top + NAME_SIZE + 1.5, text, NAME_SIZE, FAINT_INK, outer))
    return sorted(frames, key=lambda frame: not frame.outer), texts


def _pieces(start: int, end: int, columns: list[int]) -> Iterator[tuple[int, int, int]]:
    """Column, first row and end of what of a run stands in each column."""
    for column, (first, last) in enumerate(pairwise(columns)):
        if max(start, first) < min(end, last):
            yield column, max(start, first), min(end, last)
