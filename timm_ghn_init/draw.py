"""A picture of a primitive graph, like the paper's Figure 3: .svg, .png or .dot.

These graphs are long and thin: hundreds of layers, most of them one node wide. So the layout is layered (a row for each
layer, branches side by side in lanes) and the long axis is folded like a snake into columns, at places that few edges
cross. All three formats are drawn from the same layout.
"""

import io
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from .graph import Graph, Node

Point = tuple[float, float]
Points = tuple[Point, ...]

# -- what a primitive looks like ---------------------------------------------------------------------------------------


class Marker(NamedTuple):
    """A regular polygon (0 sides: a circle), as large as a circle of `scale` times the radius."""

    sides: int
    turn: float  # degrees, 0 is a corner at the top
    scale: float
    dot_shape: str


# Groups differ by marker, the primitives of a group by colour: with the eight hues of Okabe and Ito and their darker
# and lighter shades no two primitives of one marker are alike for a colour-blind reader or in grey.
GROUPS = {
    "weights": Marker(0, 0, 1.0, "circle"),
    "vectors": Marker(4, 45, 1.15, "square"),
    "pooling": Marker(3, 180, 1.3, "invtriangle"),
    "joins": Marker(4, 0, 1.2, "diamond"),
    "attention, gates": Marker(6, 0, 1.2, "hexagon"),
    "inputs": Marker(5, 0, 1.25, "pentagon"),
}
STYLES: dict[str, tuple[str, str]] = {
    "conv": ("weights", "#0072b2"),
    "sep_conv": ("weights", "#6ec1ef"),
    "dil_conv": ("weights", "#0b2e4f"),
    "bias": ("vectors", "#c4c4c4"),
    "bn": ("vectors", "#e69f00"),
    "ln": ("vectors", "#c04000"),
    "max_pool": ("pooling", "#00523c"),
    "avg_pool": ("pooling", "#009e73"),
    "glob_avg": ("pooling", "#8fdcc3"),
    "sum": ("joins", "#2b2b2b"),
    "concat": ("joins", "#9a9a9a"),
    "msa": ("attention, gates", "#d98cb3"),
    "cse": ("attention, gates", "#7a1f55"),
    "input": ("inputs", "#2b2b2b"),
    "pos_enc": ("inputs", "#f0e442"),
}
UNKNOWN = ("weights", "#ffffff")

BACKGROUND = "#ffffff"
INK = "#1f2933"
FAINT_INK = "#66707a"
OUTLINE = "#3a3a3a"
CHAIN = "#7b8794"
SKIP, CROWDED_SKIP = "#b0573a", "#e4c5bb"
TIMES = "\N{MULTIPLICATION SIGN}"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
CHAR = 0.61  # mean width of a character in units of the font size

# -- layout ------------------------------------------------------------------------------------------------------------

MOST_LABELLED_NODES = 200
ASPECT = 1.6
MARGIN = 28.0
HEADER, LEGEND = 86.0, 60.0  # the y of the first row; about the height of the legend
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 17.0, 12.0, 10.5
RADIUS = 5.5
ARROW = 5.0
LEAST_WIDTH = 520.0
MOST_ARROWS_INTO_A_NODE = 3


class Curve(NamedTuple):
    """An edge: two points (a line) or 3k + 1 (k cubic Bezier segments), and the tip of its arrow head."""

    points: Points
    skip: bool  # whether it jumps over layers
    head: Points  # a triangle, or empty where there is no room


class Text(NamedTuple):
    x: float
    y: float
    text: str
    size: float
    colour: str = INK
    bold: bool = False


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels, y downwards."""

    title: str
    width: float
    height: float
    xy: list[Point]  # of the nodes
    curves: list[Curve]
    texts: list[Text]
    legend: list[tuple[str, float, float]]  # primitive, x, y


def draw(graph: Graph, path: str | os.PathLike[str], title: str | None = None) -> None:
    """Draw a primitive graph, as in Figure 3 of the paper.

    Primitives are told apart by colour and, in groups, by marker; a legend counts them. Edges that skip layers are
    drawn beside the chain. In graphs of up to 200 nodes each has its primitive and shape as a label. In an SVG the
    tooltip of a node names its parameter.

    Args:
        graph: what to draw, from `trace`.
        path: the file to write, .svg, .png or .dot; its folder must exist. A .png needs matplotlib.
        title: heading, for instance the architecture's name. Default: "Primitive graph".

    Raises:
        ValueError: the suffix is none of the three.
        OSError: the file cannot be written.
        ImportError: a .png was asked for and matplotlib is not installed.
    """
    path = Path(path)
    render = FORMATS.get(path.suffix.lower())
    if render is None:
        raise ValueError(f"{path}: a graph is drawn as .svg, .png or .dot, by the suffix of the file.")
    _write(path, render(graph, layout(graph, _clean(title or "Primitive graph"))))


class Spacing(NamedTuple):
    """Pixels between rows and between lanes, and the width left of a column's first lane for edges that skip."""

    row: float
    lane: float
    bow: float


class Fold(NamedTuple):
    """Nodes on the grid: row (layer) and lane of each, and the first row of every column, with the end."""

    row: list[int]
    lane: list[int]
    starts: list[int]

    def column(self, node: int) -> int:
        return bisect_right(self.starts, self.row[node]) - 1


def layout(graph: Graph, title: str) -> Layout:
    """Place nodes, edges, labels, heading and legend."""
    labels = [_label(n) for n in graph.nodes] if len(graph.nodes) <= MOST_LABELLED_NODES else []
    label_width = max(map(len, labels), default=0) * LABEL_SIZE * CHAR
    spacing = Spacing(25.0, label_width + 2 * RADIUS + 16, 46.0) if labels else Spacing(19.0, 24.0, 36.0)
    rows = _rows(graph)
    fold = _fold(graph, rows, _lanes(graph, rows), spacing)
    xy = _positions(fold, spacing)
    curves = _curves(graph, fold, xy, spacing)
    right = max(x for x, _ in xy) + (label_width if labels else 0) + 2 * RADIUS + MARGIN
    bottom = max(y for points in (xy, *(c.points for c in curves)) for _, y in points) + 30
    width = max(right, LEAST_WIDTH)
    legend, counts, end = _legend(graph, width, bottom)
    texts = [Text(x + RADIUS + 5, y + LABEL_SIZE * 0.36, t, LABEL_SIZE) for t, (x, y) in zip(labels, xy, strict=False)]
    return Layout(title, width, end, xy, curves, [*texts, *_heading(graph, title, width), *counts], legend)


def _neighbours(graph: Graph) -> tuple[list[list[int]], list[list[int]]]:
    """Predecessors and successors of each node."""
    before: list[list[int]] = [[] for _ in graph.nodes]
    after: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges.tolist():
        before[v].append(u)
        after[u].append(v)
    return before, after


def _rows(graph: Graph) -> list[int]:
    """The layer of each node, its longest path from a source; sources other than the input just before their use."""
    before, after = _neighbours(graph)
    row: list[int] = []
    for sources in before:
        row.append(max((row[u] + 1 for u in sources), default=0))
    for v, sources in enumerate(before):
        if v and not sources and after[v]:
            row[v] = max(0, min(row[w] for w in after[v]) - 1)
    return row


def _lanes(graph: Graph, row: list[int]) -> list[int]:
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


def _fold(graph: Graph, row: list[int], lane: list[int], spacing: Spacing) -> Fold:
    """Fold the rows into columns such that the picture is about ASPECT times as wide as it is high."""
    n_rows = max(row) + 1
    lanes = [0] * n_rows
    for r, i in zip(row, lane, strict=True):
        lanes[r] = max(lanes[r], i + 1)
    crossing = _crossing(graph, row)

    def off(starts: list[int]) -> float:
        columns = list(pairwise(starts))
        width = sum(max(lanes[a:b]) * spacing.lane + spacing.bow for a, b in columns)
        height = max(b - a for a, b in columns) * spacing.row + HEADER + LEGEND
        return abs(math.log(width / height / ASPECT))

    column_width = sum(lanes) / n_rows * spacing.lane + spacing.bow
    guess = math.sqrt(ASPECT * n_rows * spacing.row / column_width)
    counts = {max(1, round(guess * factor / 10)) for factor in range(5, 14)}
    return Fold(row, lane, min((_breaks(crossing, n_rows, c) for c in sorted(counts)), key=off))


def _crossing(graph: Graph, row: list[int]) -> list[int]:
    """[r]: how many nodes before row r have successors from row r on: what a break in front of r cuts apart."""
    reach = list(row)
    for u, v in graph.edges.tolist():
        reach[u] = max(reach[u], row[v])
    change = Counter(r + 1 for r in row)
    change.subtract(r + 1 for r in reach)
    return list(accumulate(change[r] for r in range(max(row) + 2)))


def _breaks(crossing: list[int], n_rows: int, columns: int) -> list[int]:
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


def _positions(fold: Fold, spacing: Spacing) -> list[Point]:
    """Pixels of the nodes: even columns run down, odd ones up, and all but the last are stretched to one height."""
    lengths = [b - a for a, b in pairwise(fold.starts)]
    height = (max(lengths) - 1) * spacing.row
    steps = [height / max(1, length - 1) for length in lengths]
    steps[-1] = min(steps[-1], 1.3 * spacing.row)
    lanes = [1] * len(lengths)
    for node, lane in enumerate(fold.lane):
        lanes[fold.column(node)] = max(lanes[fold.column(node)], lane + 1)
    left = list(accumulate((n * spacing.lane + spacing.bow for n in lanes), initial=MARGIN))
    xy = []
    for node, (row, lane) in enumerate(zip(fold.row, fold.lane, strict=True)):
        c = fold.column(node)
        y = (row - fold.starts[c]) * steps[c]
        xy.append((left[c] + spacing.bow + lane * spacing.lane, HEADER + (y if c % 2 == 0 else height - y)))
    return xy


# -- edges -------------------------------------------------------------------------------------------------------------


def _curves(graph: Graph, fold: Fold, xy: list[Point], spacing: Spacing) -> list[Curve]:
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


# -- words -------------------------------------------------------------------------------------------------------------


def _label(node: Node) -> str:
    return f"{node.primitive} {_shape(node)}".rstrip()


def _shape(node: Node) -> str:
    if not node.shape:
        return ""
    shape = node.shape[2:] if node.primitive.endswith("_pool") else node.shape
    return TIMES.join(map(str, shape))


def _tooltip(node: Node) -> str:
    return "\n".join(filter(None, (node.primitive, _clean(node.param), _shape(node))))


def _clean(text: str) -> str:
    """Text on one line that any of the formats can hold: names come from the model, and may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _text_width(text: Text) -> float:
    return len(text.text) * text.size * CHAR


def _heading(graph: Graph, title: str, width: float) -> list[Text]:
    most = int((width - 2 * MARGIN) / (TITLE_SIZE * CHAR * 1.05))
    if len(title) > most:
        title = title[: most - 1] + "…"
    size = TIMES.join(map(str, graph.input_size))
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, input {size}"
    return [
        Text(MARGIN, MARGIN + 8, title, TITLE_SIZE, bold=True),
        Text(MARGIN, MARGIN + 27, counts, TEXT_SIZE, FAINT_INK),
    ]


def _legend(graph: Graph, width: float, top: float) -> tuple[list[tuple[str, float, float]], list[Text], float]:
    """Marker, name and count of each primitive that occurs, by group; the y of its end."""
    counts = Counter(n.primitive for n in graph.nodes)
    known = [p for p in STYLES if p in counts] + sorted(set(counts) - set(STYLES))
    markers: list[tuple[str, float, float]] = []
    texts: list[Text] = []
    x, y = MARGIN, top + 8
    group = ""
    for primitive in known:
        own = STYLES.get(primitive, UNKNOWN)[0]
        text = Text(0, 0, f"{primitive} {counts[primitive]}", TEXT_SIZE)
        x += 14 if group and own != group else 0
        if x + 2 * RADIUS + 6 + _text_width(text) > width - MARGIN:
            x, y = MARGIN, y + 22
        group = own
        markers.append((primitive, x + RADIUS, y))
        texts.append(text._replace(x=x + 2 * RADIUS + 6, y=y + TEXT_SIZE * 0.36))
        x += 2 * RADIUS + 6 + _text_width(text) + 16
    return markers, texts, y + MARGIN


# -- formats -----------------------------------------------------------------------------------------------------------


def _corners(marker: Marker, x: float, y: float) -> list[Point]:
    sides = marker.sides or 24
    angles = (math.radians(marker.turn + 360 * i / sides) for i in range(sides))
    radius = RADIUS * marker.scale
    return [(x + radius * math.sin(a), y - radius * math.cos(a)) for a in angles]


def _svg(graph: Graph, scene: Layout) -> bytes:
    w, h = math.ceil(scene.width), math.ceil(scene.height)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
        f'style="background:{BACKGROUND}" font-family={quoteattr(FONT)}>',
        f'<rect width="{w}" height="{h}" fill="{BACKGROUND}"/>',
    ]
    for curves, colour, stroke in _edge_styles(scene):
        lines.append(f'<g fill="none" stroke="{colour}" stroke-width="{stroke}">')
        lines += [f'<path d="{_svg_path(c.points)}"/>' for c in curves]
        lines.append(f'</g><g fill="{colour}">')
        lines += [f'<path d="{_svg_path(c.head, polygon=True)}"/>' for c in curves if c.head]
        lines.append("</g>")
    lines.append(f'<g stroke="{OUTLINE}" stroke-width="0.7">')
    for node, (x, y) in zip(graph.nodes, scene.xy, strict=True):
        lines.append(_svg_marker(node.primitive, x, y, f"<title>{escape(_tooltip(node))}</title>"))
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
    return f'<path d="{_svg_path(_corners(marker, x, y), polygon=True)}" fill="{colour}">{inside}</path>'


def _edge_styles(scene: Layout) -> list[tuple[list[Curve], str, float]]:
    """Edges to draw, first those at the bottom: their colour and width."""
    skips = [c for c in scene.curves if c.skip]
    chain = [c for c in scene.curves if not c.skip]
    crowded = len(skips) > len(chain)  # as in DenseNet, where they would hide the chain
    return [(skips, CROWDED_SKIP if crowded else SKIP, 1.1), (chain, CHAIN, 1.4)]


def _dot(graph: Graph, scene: Layout) -> bytes:
    """For Graphviz: `dot` makes its own layout, `neato -n2` takes this one."""
    labelled = len(graph.nodes) <= MOST_LABELLED_NODES
    lines = [
        "digraph {",
        f'  graph [label={_quoted(scene.title)}, labelloc=t, bgcolor="{BACKGROUND}", forcelabels=true];',
        "  graph [outputorder=edgesfirst];",
        f'  node [label="", style=filled, color="{OUTLINE}", fixedsize=true, fontname=Helvetica, fontsize=10];',
        "  edge [arrowsize=0.4];",
    ]
    for i, (node, (x, y)) in enumerate(zip(graph.nodes, scene.xy, strict=True)):
        group, colour = STYLES.get(node.primitive, UNKNOWN)
        across, along = (max(c) - min(c) for c in zip(*_corners(GROUPS[group], 0, 0), strict=True))
        attributes = {
            "shape": GROUPS[group].dot_shape,
            "fillcolor": colour,
            "width": f"{across / 72:.3f}",
            "height": f"{along / 72:.3f}",
            "pos": f"{x:.1f},{scene.height - y:.1f}",
            "tooltip": _tooltip(node),
            "xlabel": _label(node) if labelled else "",
        }
        lines.append(f"  n{i} [{', '.join(f'{key}={_quoted(value)}' for key, value in attributes.items())}];")
    for (u, v), curve in zip(graph.edges.tolist(), scene.curves, strict=True):
        colour = SKIP if curve.skip else CHAIN
        lines.append(f'  n{u} -> n{v} [color="{colour}", pos="{_dot_spline(curve, scene.height)}"];')
    return "\n".join([*lines, "}\n"]).encode()


def _dot_spline(curve: Curve, height: float) -> str:
    points = curve.points if len(curve.points) > 2 else (curve.points[0], *curve.points, curve.points[1])
    head = [f"e,{x:.1f},{height - y:.1f}" for x, y in curve.head[:1]]
    return " ".join(head + [f"{x:.1f},{height - y:.1f}" for x, y in points])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _png(graph: Graph, scene: Layout) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PathCollection
        from matplotlib.figure import Figure
        from matplotlib.path import Path as Outline
        from matplotlib.patheffects import withStroke
    except ImportError as error:
        raise ImportError(
            'A .png is drawn by matplotlib, which is not installed: pip install "timm-ghn-init[plot]", '
            "or write a .svg or .dot, which need nothing."
        ) from error

    def polygon(points: Sequence[Point]) -> Any:
        return Outline([*points, points[0]], closed=True)

    def edge(points: Sequence[Point]) -> Any:
        curve = Outline.LINETO if len(points) == 2 else Outline.CURVE4
        return Outline(points, [Outline.MOVETO] + [curve] * (len(points) - 1))

    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=144, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    for curves, colour, stroke in _edge_styles(scene):
        lines = [edge(c.points) for c in curves]
        axes.add_collection(PathCollection(lines, facecolors="none", edgecolors=colour, linewidths=stroke))
        heads = [polygon(c.head) for c in curves if c.head]
        axes.add_collection(PathCollection(heads, facecolors=colour, linewidths=0))
    nodes = [(n.primitive, x, y) for n, (x, y) in zip(graph.nodes, scene.xy, strict=True)] + scene.legend
    styles = [STYLES.get(primitive, UNKNOWN) for primitive, _, _ in nodes]
    shapes = [polygon(_corners(GROUPS[g], x, y)) for (_, x, y), (g, _) in zip(nodes, styles, strict=True)]
    colours = [colour for _, colour in styles]
    axes.add_collection(PathCollection(shapes, facecolors=colours, edgecolors=OUTLINE, linewidths=0.7, zorder=2))
    for t in scene.texts:
        weight = "bold" if t.bold else "normal"
        axes.text(
            t.x, t.y, t.text, size=t.size, color=t.colour, weight=weight, va="baseline", parse_math=False, zorder=3,
            path_effects=[withStroke(linewidth=2.5, foreground=BACKGROUND)],
        )  # fmt: skip
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Graph, Layout], bytes]] = {".svg": _svg, ".png": _png, ".dot": _dot}


def _write(path: Path, content: bytes) -> None:
    """All of the file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
