"""Labels, heading and legend."""

from collections import Counter

from ..graph import Graph, Node
from ..text import clean
from .grid import MARGIN
from .looks import CHAR, FAINT_INK, RADIUS, STYLES, TIMES, UNKNOWN
from .scene import Text

TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 17.0, 12.0, 10.5


def label(node: Node) -> str:
    return f"{node.primitive} {_shape(node)}".rstrip()


def _shape(node: Node) -> str:
    if not node.shape:
        return ""
    shape = node.shape[2:] if node.primitive.endswith("_pool") else node.shape
    return TIMES.join(map(str, shape))


def tooltip(node: Node) -> str:
    return "\n".join(filter(None, (node.primitive, clean(node.param), _shape(node))))


def _text_width(text: Text) -> float:
    return len(text.text) * text.size * CHAR


def heading(graph: Graph, title: str, width: float) -> list[Text]:
    most = int((width - 2 * MARGIN) / (TITLE_SIZE * CHAR * 1.05))
    if len(title) > most:
        title = title[: most - 1] + "…"
    size = TIMES.join(map(str, graph.input_size))
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, input {size}"
    return [
        Text(MARGIN, MARGIN + 8, title, TITLE_SIZE, bold=True),
        Text(MARGIN, MARGIN + 27, counts, TEXT_SIZE, FAINT_INK),
    ]


def legend(graph: Graph, width: float, top: float) -> tuple[list[tuple[str, float, float]], list[Text], float]:
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
