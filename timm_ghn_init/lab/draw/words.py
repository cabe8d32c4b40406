"""Labels, heading and legend."""

from collections import Counter

from ...graph import Graph, Node
from ...utils.text import clean
from .edges import arrow, edge_styles
from .grid import MARGIN
from .looks import CHAR, FAINT_INK, RADIUS, STYLES, TIMES, UNKNOWN
from .scene import Curve, Points, Shape, Text

TITLE_SIZE, TEXT_SIZE, LABEL_SIZE, NAME_SIZE = 17.0, 12.0, 10.5, 9.0
_DIALECTS = {"ghn2": "GHN-2", "ghn3": "GHN-3"}


def label(node: Node) -> str:
    return f"{node.primitive} {_shape(node)}".rstrip()


def _shape(node: Node) -> str:
    if not node.shape:
        return ""
    shape = node.shape[2:] if node.primitive.endswith("_pool") else node.shape
    return TIMES.join(map(str, shape))


def tooltip(node: Node, note: str = "") -> str:
    return "\n".join(filter(None, (node.primitive, clean(node.param), _shape(node), clean(note))))


def width_of(text: str, size: float) -> float:
    return len(text) * size * CHAR


def heading(graph: Graph, title: str, width: float, folded: bool) -> list[Text]:
    most = int((width - 2 * MARGIN) / (TITLE_SIZE * CHAR * 1.05))
    if len(title) > most:
        title = title[: most - 1] + "…"
    size = TIMES.join(map(str, graph.input_size))
    virtual = int((graph.distances() > 1).sum())
    return [
        Text(MARGIN, MARGIN + 8, title, TITLE_SIZE, bold=True),
        Text(
            MARGIN,
            MARGIN + 27,
            f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, input {size}",
            TEXT_SIZE,
            FAINT_INK,
        ),
        Text(
            MARGIN,
            MARGIN + 43,
            f"as {_DIALECTS[graph.dialect]} reads it, with {virtual} virtual edges (paths of 2 to 50), not drawn"
            + "; equal blocks are drawn once" * folded,
            TEXT_SIZE,
            FAINT_INK,
        ),
    ]


def legend(
    graph: Graph, curves: list[Curve], width: float, top: float
) -> tuple[list[tuple[str, float, float]], list[Shape], list[Text], float]:
    """Marker, name and count of each primitive that occurs, by group; the two kinds of edges; the y of its end."""
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
        if x + 2 * RADIUS + 6 + width_of(text.text, TEXT_SIZE) > width - MARGIN:
            x, y = MARGIN, y + 22
        group = own
        markers.append((primitive, x + RADIUS, y))
        texts.append(text._replace(x=x + 2 * RADIUS + 6, y=y + TEXT_SIZE * 0.36))
        x += 2 * RADIUS + 6 + width_of(text.text, TEXT_SIZE) + 16
    samples: list[Shape] = []
    x, y = MARGIN, y + 22
    (_, skip, _), (_, chain, _) = edge_styles(curves)
    for name, colour in (("edge to the next row", chain), ("edge that skips rows", skip)):
        samples += [Shape(points, colour) for points in _sample(x, y)]
        texts.append(Text(x + 36, y + TEXT_SIZE * 0.36, name, TEXT_SIZE))
        x += 36 + width_of(name, TEXT_SIZE) + 16
    return markers, samples, texts, y + MARGIN


def _sample(x: float, y: float) -> tuple[Points, Points]:
    """The shaft and the head of an arrow."""
    (_, (back, _)), head = arrow(((x, y), (x + 30 + RADIUS, y)))
    return ((x, y - 0.7), (back, y - 0.7), (back, y + 0.7), (x, y + 0.7)), head
