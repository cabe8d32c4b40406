"""A picture of a primitive graph, like the paper's Figure 3: .svg, .png or .dot.

These graphs are long and thin: hundreds of layers, most of them one node wide. So the layout is layered (a row for each
layer, branches side by side in lanes) and the long axis is folded like a snake into columns, at places that few edges
cross. All three formats are drawn from the same layout.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ..atomic import replacing
from ..graph import Graph
from ..text import clean
from .compose import layout
from .dot import as_dot
from .looks import GROUPS, RADIUS, STYLES, TIMES
from .png import as_png
from .scene import Layout
from .svg import as_svg

__all__ = ["FORMATS", "GROUPS", "RADIUS", "STYLES", "TIMES", "draw", "layout"]

FORMATS: dict[str, Callable[[Graph, Layout], bytes]] = {".svg": as_svg, ".png": as_png, ".dot": as_dot}


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
    content = render(graph, layout(graph, clean(title or "Primitive graph")))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


Graph.picture = lambda graph: as_svg(graph, layout(graph, "Primitive graph")).decode()
