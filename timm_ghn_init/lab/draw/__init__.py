"""A primitive graph goes in, a picture of it comes out, as in Figure 3 of the paper (arXiv 2207.10049)."""

import os
from pathlib import Path

from ...graph import Graph
from ...utils.checks import InputError
from ...utils.files import replacing
from ...utils.text import clean
from ..pictures import rendered, style

__all__ = ["FORMATS", "MOST_LABELLED_NODES", "draw"]

FORMATS = (".svg", ".png", ".pdf")
MOST_LABELLED_NODES = 200


def draw(
    graph: Graph,
    path: str | os.PathLike[str],
    title: str | None = None,
    *,
    labels: bool | None = None,
    folded: bool = False,
) -> None:
    """Draw a primitive graph, as in Figure 3 of the paper (arXiv 2207.10049).

    Each primitive has a colour and each group of primitives a marker; a legend counts them. Edges run downwards, and
    columns follow each other from left to right. Frames show stages and blocks, by the names of the parameters. The
    same graph gives the same bytes.

    Args:
        graph: what to draw, from `trace`.
        path: the file to write, .svg, .png or .pdf; its folder must exist.
        title: heading, for instance the architecture's name. Default: "Primitive graph".
        labels: write primitive and shape next to each node. Default: in graphs of at most 200 nodes.
        folded: draw a row of equal blocks once, with their number ("blocks.1 × 26").

    Raises:
        ValueError: the suffix is none of the three.
        OSError: the file cannot be written.
        ImportError: matplotlib is not installed.

    Example:
        >>> draw(trace(timm.create_model("resnet18")), "resnet18.svg", title="resnet18")
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a graph is drawn as .svg, .png or .pdf. Give the file one of these suffixes.")
    content = _render(graph, path.suffix.lower(), title, labels, folded)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _render(graph: Graph, suffix: str, title: str | None, labels: bool | None, folded: bool) -> bytes:
    if labels is None:
        labels = len(graph.nodes) <= MOST_LABELLED_NODES
    with style():
        from .picture import figure

        return rendered(figure(graph, clean(title or "Primitive graph", 80), labels, folded), suffix)


def _picture(graph: Graph) -> str | None:
    """The SVG element that notebooks show; None without matplotlib."""
    try:
        text = _render(graph, ".svg", None, None, len(graph.nodes) > MOST_LABELLED_NODES).decode()
    except ImportError:
        return None
    return text[text.index("<svg") :]


Graph.picture = _picture
