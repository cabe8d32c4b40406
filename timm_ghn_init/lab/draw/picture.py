"""The picture of a layout, drawn with matplotlib."""

from collections import Counter
from itertools import pairwise
from typing import Any

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.path import Path

from ...graph import Graph, Node
from .blocks import Folded, Places, fold, places
from .layout import MARGIN, TOP, Layout, Spacing, layout
from .looks import (
    BACKGROUND,
    BLOCK,
    CHAIN,
    CROWDED_SKIP,
    FAINT_INK,
    GROUPS,
    INK,
    OUTLINE,
    SKIP,
    STAGE,
    STYLES,
    TIMES,
    UNKNOWN,
)

LEAST_WIDTH = 640.0
_TITLE, _TEXT, _LABEL, _NAME = 17.0, 12.0, 10.5, 9.5  # font sizes in points
_CHAR = 0.62  # mean width of a character in units of the font size
_LEGEND = 76.0  # height in points
_DIALECTS = {"ghn2": "GHN-2", "ghn3": "GHN-3"}
Points = list[tuple[float, float]]


def figure(graph: Graph, title: str, labels: bool, folded: bool) -> Figure:
    """The figure of a graph; the arguments are those of `draw`."""
    shown = fold(graph) if folded else Folded(graph, places(graph), {})
    written = [_label(node) for node in shown.graph.nodes] if labels else []
    names = _frame_names(shown.places, shown.times)
    widest = max(
        max(map(len, written), default=0) * _LABEL * _CHAR + 24, max(map(len, names.values()), default=0) * _NAME * 0.5
    )
    placed = layout(shown.graph, shown.places, names, Spacing(25.0 if labels else 20.0, max(24.0, widest + 6), 44.0))
    width, height = max(placed.width, LEAST_WIDTH), placed.height + _LEGEND
    result = Figure(figsize=(width / 72, height / 72), dpi=144, facecolor=BACKGROUND)
    axes = result.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _draw_frames(axes, placed)
    skipping = _draw_edges(axes, shown.graph, placed)
    _draw_nodes(axes, shown.graph, placed, written)
    _draw_heading(axes, graph, title, width, bool(shown.times))
    _draw_legend(result, shown.graph, skipping)
    return result


def _label(node: Node) -> str:
    shape = (node.shape or ())[2 * node.primitive.endswith("_pool") :]
    return f"{node.primitive} {TIMES.join(map(str, shape))}".rstrip()


def _frame_names(places: list[Places], times: dict[str, int]) -> dict[str, str]:
    """The title of a frame: a block without the name of its stage, and how many equal blocks it stands for."""
    found = {}
    for place in places:
        for outer, name in pairwise(("", *place[:2])):
            own = name.removeprefix(f"{outer}.") if outer else name
            own = name if own.isdigit() else own
            found[name] = f"{own} {TIMES} {times[name]}" if name in times else own
    return found


def _draw_frames(axes: Any, placed: Layout) -> None:
    for frame in placed.frames:
        fill, line = (STAGE, "none") if frame.outer else ("none", BLOCK)
        size = (frame.width - 8, frame.height - 8)
        axes.add_patch(
            FancyBboxPatch((frame.x + 4, frame.y + 4), *size, boxstyle="round,pad=4", fc=fill, ec=line, zorder=0)
        )
        weight = "bold" if frame.outer else "normal"
        _write(axes, frame.x + 5, frame.y + _NAME + 1.5, frame.name, _NAME, FAINT_INK, weight)


def _write(axes: Any, x: float, y: float, text: str, size: float, colour: str = INK, weight: str = "normal") -> None:
    behind = {"facecolor": BACKGROUND, "edgecolor": "none", "alpha": 0.7, "pad": 0.4}  # edges do not cross the text
    look = {"size": size, "color": colour, "weight": weight, "bbox": behind}
    axes.text(x, y, text, va="baseline", parse_math=False, zorder=3, **look)


def _draw_edges(axes: Any, graph: Graph, placed: Layout) -> str:
    """Draw the edges. Returns the colour of those that skip rows."""
    edges = graph.edges.tolist()
    skips = [edge for edge in edges if placed.row[edge[1]] - placed.row[edge[0]] > 1]
    crowded = 2 * len(skips) > len(edges)  # as in DenseNet, where they would hide the others
    colour = CROWDED_SKIP if crowded else SKIP
    occupied = set(zip(placed.row, placed.lane, strict=True))
    chain = [edge for edge in edges if placed.row[edge[1]] - placed.row[edge[0]] <= 1]
    for some, its_colour, width in ((skips, colour, 1.1), (chain, CHAIN, 1.4)):
        paths = [_edge(u, v, placed, occupied) for u, v in some]
        axes.add_collection(PathCollection(paths, facecolors="none", edgecolors=its_colour, linewidths=width, zorder=1))
    return colour


def _edge(u: int, v: int, placed: Layout, occupied: set[tuple[int, int]]) -> Path:
    """The line of an edge: straight where nothing is in its way, else to the left of its lane or below the columns."""
    a, b = placed.xy[u], placed.xy[v]
    bow = min(20.0, 9 + 2.4 * (placed.row[v] - placed.row[u]))
    if placed.column[u] != placed.column[v]:
        return Path(_around(u, v, placed, bow))
    between = range(placed.row[u] + 1, placed.row[v])
    own_free, other_free = (not any((r, placed.lane[n]) in occupied for r in between) for n in (u, v))
    if placed.lane[u] == placed.lane[v]:
        if own_free:
            return Path([a, b])
        return _curve(a, (a[0] - bow / 0.75, a[1]), (a[0] - bow / 0.75, b[1]), b)
    step = (b[1] - a[1]) / (placed.row[v] - placed.row[u])
    corner = (a[0], b[1] - step) if own_free else (b[0], a[1] + step)
    if own_free or other_free:  # along the free lane, and across within one row
        start, end = (corner, b) if own_free else (a, corner)
        middle = (start[1] + end[1]) / 2
        across = [start, (start[0], middle), (end[0], middle), end]
        points, curve = ([a, *across], [1, 2, 4, 4, 4]) if own_free else ([*across, b], [1, 4, 4, 4, 2])
        return Path(points, curve)
    side = b[0] - bow
    return Path([a, (a[0], a[1] + step / 2), (side, a[1] + step / 2), (side, b[1]), b])


def _curve(*points: tuple[float, float]) -> Path:
    return Path(points, [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1))


def _around(u: int, v: int, placed: Layout, bow: float) -> Points:
    """An edge to a later column: down, below the columns between them, up, and in from above."""
    a, b = placed.xy[u], placed.xy[v]
    first, last = placed.column[u], placed.column[v]
    shift = u % 4 * 3.0  # edges that run next to each other stay apart
    below = max(placed.bottoms[first:last]) + 14 + shift
    above = TOP - 30 - shift
    nodes = [point for point, column in zip(placed.xy, placed.column, strict=True) if column == last]
    gutter = min(nodes)[0] - 32 + shift
    out = a[0] if a[1] == placed.bottoms[first] else a[0] - bow
    into = b[0] if b[1] == min(y for _, y in nodes) else b[0] - bow
    return [a, (out, a[1]), (out, below), (gutter, below), (gutter, above), (into, above), (into, b[1]), b]


def _draw_nodes(axes: Any, graph: Graph, placed: Layout, written: list[str]) -> None:
    groups: dict[tuple[str, str], Points] = {}
    for node, point in zip(graph.nodes, placed.xy, strict=True):
        groups.setdefault(STYLES.get(node.primitive, UNKNOWN), []).append(point)
    for (group, colour), points in groups.items():
        marker = GROUPS[group]
        axes.scatter(*zip(*points, strict=True), s=95, c=colour, marker=marker, edgecolors=OUTLINE, lw=0.7, zorder=2)
    for text, (x, y) in zip(written, placed.xy, strict=False):
        _write(axes, x + 9, y + _LABEL * 0.36, text, _LABEL)


def _draw_heading(axes: Any, graph: Graph, title: str, width: float, folded: bool) -> None:
    most = int((width - 2 * MARGIN) / (_TITLE * _CHAR))
    size = TIMES.join(map(str, graph.input_size))
    virtual = int((graph.distances() > 1).sum())
    lines = (
        f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, input {size}",
        f"{_DIALECTS[graph.dialect]} also reads {virtual} virtual edges, not drawn"
        + "; equal blocks are drawn once" * folded,
    )
    _write(axes, MARGIN, MARGIN + 8, title if len(title) <= most else title[: most - 1] + "…", _TITLE, weight="bold")
    for i, line in enumerate(lines):
        _write(axes, MARGIN, MARGIN + 27 + 16 * i, line, _TEXT, FAINT_INK)


def _draw_legend(result: Figure, graph: Graph, skipping: str) -> None:
    counts = Counter(node.primitive for node in graph.nodes)
    known = [p for p in STYLES if p in counts] + sorted(set(counts) - set(STYLES))
    handles = [
        Line2D([], [], ls="", marker=GROUPS[group], color=colour, mec=OUTLINE, mew=0.7, ms=9, label=f"{p} {counts[p]}")
        for p in known
        for group, colour in [STYLES.get(p, UNKNOWN)]
    ]
    handles += [
        Line2D([], [], color=c, label=text) for c, text in ((CHAIN, "to the next row"), (skipping, "skips rows"))
    ]
    columns = min(len(handles), max(3, int(result.get_figwidth() * 72 / 130)))
    result.legend(handles=handles, loc="lower left", ncols=columns, frameon=False, fontsize=_TEXT)
