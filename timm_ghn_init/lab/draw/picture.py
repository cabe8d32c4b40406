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
from ..pictures import FAINT, INK, PAPER, TIMES
from .blocks import Folded, Places, fold, places
from .layout import Layout, layout
from .looks import BLOCK, CHAIN, CROWDED_SKIP, GROUPS, OUTLINE, SKIP, STAGE, STYLES, UNKNOWN

_TITLE, _TEXT, _LABEL, _NAME = 17.0, 12.0, 10.5, 9.5  # font sizes in points
_CHAR = 0.62  # mean width of a character in units of the font size
_MARGIN = 28.0
_ABOVE = 110.0  # points for the heading and the edges above the first row
_DIALECTS = {"ghn2": "GHN-2", "ghn3": "GHN-3"}
Point = tuple[float, float]


def figure(graph: Graph, title: str, labels: bool, folded: bool) -> Figure:
    """The figure of a graph; the arguments are those of `draw`."""
    shown = fold(graph) if folded else Folded(graph, places(graph), {})
    written = [_label(node) for node in shown.graph.nodes] if labels else []
    names = _frame_names(shown.places, shown.times)
    longest = max(
        [18.0, *(len(text) * _LABEL * _CHAR + 24 for text in written), *(len(n) * 5.0 for n in names.values())]
    )
    placed = layout(shown.graph, shown.places, names, longest + 6)
    width, bottom = max(600.0, placed.left[-1] + _MARGIN), max(placed.bottom) + _MARGIN
    result = Figure(figsize=((width + _MARGIN) / 72, (bottom + _ABOVE + 76) / 72))  # 76 for the legend
    axes = result.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-_MARGIN, width), ylim=(bottom + 76, -_ABOVE))
    axes.axis("off")
    _draw_frames(axes, placed)
    skipping = _draw_edges(axes, shown.graph, placed)
    _draw_nodes(axes, shown.graph, placed, written)
    _draw_heading(axes, graph, title, bool(shown.times))
    handles = _legend(shown.graph, skipping)
    columns = min(len(handles), max(3, int(width / 130)))
    result.legend(handles=handles, loc="lower left", ncols=columns, fontsize=_TEXT)
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
        look: dict[str, Any] = {"fc": STAGE, "ec": "none"} if frame.outer else {"fc": "none", "ec": BLOCK}
        corner, size = (frame.x + 4, frame.y + 4), (frame.width - 8, frame.height - 8)
        axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=4", zorder=0, **look))
        weight = "bold" if frame.outer else "normal"
        _write(axes, frame.x + 5, frame.y + _NAME + 1.5, frame.name, _NAME, FAINT, weight)


def _write(axes: Any, x: float, y: float, text: str, size: float, colour: str = INK, weight: str = "normal") -> None:
    behind = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.4}  # edges do not cross the text
    axes.text(x, y, text, va="baseline", zorder=3, size=size, color=colour, weight=weight, bbox=behind)


def _draw_edges(axes: Any, graph: Graph, placed: Layout) -> str:
    """Draw the edges. Returns the colour of those that skip rows."""
    edges = graph.edges.tolist()
    skips = [(u, v) for u, v in edges if placed.row[v] - placed.row[u] > 1]
    chain = [(u, v) for u, v in edges if placed.row[v] - placed.row[u] <= 1]
    colour = CROWDED_SKIP if len(skips) > len(chain) else SKIP  # as in DenseNet, where they would hide the others
    occupied = set(zip(placed.row, placed.lane, strict=True))
    for some, its_colour, width in ((skips, colour, 1.1), (chain, CHAIN, 1.4)):
        paths = [_edge(u, v, placed, occupied) for u, v in some]
        axes.add_collection(PathCollection(paths, facecolors="none", edgecolors=its_colour, linewidths=width, zorder=1))
    return colour


def _edge(u: int, v: int, placed: Layout, occupied: set[tuple[int, int]]) -> Path:
    """The line of an edge: down its lane and across in the last row, to the left of its lane, or to another column."""
    (ax, ay), (bx, by) = placed.xy[u], placed.xy[v]
    rows = placed.row[v] - placed.row[u]
    left = min(ax, bx) - min(20.0, 9 + 2.4 * rows)
    if placed.column[u] != placed.column[v]:
        return _to_a_later_column(u, v, placed)
    if any((r, placed.lane[u]) in occupied for r in range(placed.row[u] + 1, placed.row[v])):
        turn = (by - ay) / rows
        points = [(left, ay), (left, ay + turn), (left, ay + turn), (left, by - turn), (left, by), (bx, by)]
        return Path([(ax, ay), *points], [Path.MOVETO, *[Path.CURVE3] * 2, *[Path.LINETO] * 2, *[Path.CURVE3] * 2])
    start = by - (by - ay) / rows
    across = [(ax, (start + by) / 2), (bx, (start + by) / 2), (bx, by)]
    return Path([(ax, ay), (ax, start), *across], [Path.MOVETO, Path.LINETO, *[Path.CURVE4] * 3])


def _to_a_later_column(u: int, v: int, placed: Layout) -> Path:
    """Down, below the columns between them, up, and in from above; next to the lanes where other nodes are."""
    (ax, ay), (bx, by) = placed.xy[u], placed.xy[v]
    first, last = placed.column[u], placed.column[v]
    shift = u % 4 * 3.0  # edges that run next to each other stay apart
    below, above = max(placed.bottom[first:last]) + 14 + shift, -30 - shift
    gutter = placed.left[last] + 12 + shift
    out = ax if ay == placed.bottom[first] else ax - 12 - shift
    into = bx if by < placed.bottom[last] and placed.row[v] - placed.row[u] == 1 else bx - 12 - shift
    return Path(
        [(ax, ay), (out, ay), (out, below), (gutter, below), (gutter, above), (into, above), (into, by), (bx, by)]
    )


def _draw_nodes(axes: Any, graph: Graph, placed: Layout, written: list[str]) -> None:
    groups: dict[tuple[str, str], list[Point]] = {}
    for node, point in zip(graph.nodes, placed.xy, strict=True):
        groups.setdefault(STYLES.get(node.primitive, UNKNOWN), []).append(point)
    for (group, colour), points in groups.items():
        look = {"c": colour, "marker": GROUPS[group], "edgecolors": OUTLINE, "lw": 0.7}
        axes.scatter(*zip(*points, strict=True), s=95, zorder=2, **look)
    for text, (x, y) in zip(written, placed.xy, strict=False):
        _write(axes, x + 9, y + _LABEL * 0.36, text, _LABEL)


def _draw_heading(axes: Any, graph: Graph, title: str, folded: bool) -> None:
    virtual = int((graph.distances() > 1).sum())
    _write(axes, 0, 36 - _ABOVE, title, _TITLE, weight="bold")
    size = TIMES.join(map(str, graph.input_size))
    _write(axes, 0, 54 - _ABOVE, f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, input {size}", _TEXT, FAINT)
    folding = "; equal blocks are drawn once" if folded else ""
    text = f"{_DIALECTS[graph.dialect]} also reads {virtual} virtual edges, not drawn{folding}"
    _write(axes, 0, 70 - _ABOVE, text, _TEXT, FAINT)


def _legend(graph: Graph, skipping: str) -> list[Line2D]:
    counts = Counter(node.primitive for node in graph.nodes)
    handles = []
    for primitive in sorted(counts, key=lambda p: ([*STYLES, p].index(p), p)):
        group, colour = STYLES.get(primitive, UNKNOWN)
        look: dict[str, Any] = {"ls": "", "marker": GROUPS[group], "color": colour, "mec": OUTLINE, "mew": 0.7, "ms": 9}
        handles.append(Line2D([], [], label=f"{primitive} {counts[primitive]}", **look))
    lines = {"to the next row": CHAIN, "skips rows": skipping}
    return handles + [Line2D([], [], color=colour, label=text) for text, colour in lines.items()]
