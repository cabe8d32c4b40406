"""A picture of a primitive graph, like the paper's Figure 3: .svg, .png, .pdf or .dot.

These graphs are long and thin: hundreds of layers, most of them one node wide. So the layout is layered (a row for each
layer, branches side by side in lanes) and the long axis is cut into columns, at places that few edges cross. Blocks and
stages are framed, and rows of equal blocks may be drawn once. All formats are drawn from the same layout.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ...graph import Graph
from ...utils.checks import InputError
from ...utils.files import replacing
from ...utils.text import clean
from .compose import MOST_LABELLED_NODES, layout
from .dot import as_dot
from .looks import GROUPS, RADIUS, STYLES, TIMES
from .printed import as_pdf, as_png
from .scene import Layout
from .svg import as_svg

__all__ = ["FORMATS", "GROUPS", "MOST_LABELLED_NODES", "RADIUS", "STYLES", "TIMES", "draw", "layout"]

FORMATS: dict[str, Callable[[Layout], bytes]] = {".svg": as_svg, ".png": as_png, ".pdf": as_pdf, ".dot": as_dot}


def draw(
    graph: Graph,
    path: str | os.PathLike[str],
    title: str | None = None,
    *,
    labels: bool | None = None,
    folded: bool = False,
) -> None:
    """Draw a primitive graph, as in Figure 3 of the paper.

    Primitives are told apart by colour and, in groups, by marker; a legend counts them. Edges that skip layers are
    drawn beside the chain. Stages and blocks are framed, by the names of the parameters. In an SVG the tooltip of a
    node names its parameter.

    Args:
        graph: what to draw, from `trace`.
        path: the file to write, .svg, .png, .pdf or .dot; its folder must exist. .png and .pdf need matplotlib.
        title: heading, for instance the architecture's name. Default: "Primitive graph".
        labels: write primitive and shape beside each node. Default: where no more than 200 are drawn.
        folded: draw rows of equal blocks once, with their number ("blocks.1 × 26").

    Raises:
        ValueError: the suffix is none of the four.
        OSError: the file cannot be written.
        ImportError: a .png or .pdf was asked for and matplotlib is not installed.
    """
    path = Path(path)
    render = FORMATS.get(path.suffix.lower())
    if render is None:
        raise InputError(f"{path}: a graph is drawn as .svg, .png, .pdf or .dot, by the suffix of the file.")
    content = render(layout(graph, clean(title or "Primitive graph"), labels=labels, folded=folded))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _picture(graph: Graph) -> str:
    return as_svg(layout(graph, "Primitive graph", folded=len(graph.nodes) > MOST_LABELLED_NODES)).decode()


Graph.picture = _picture
