"""A picture for Graphviz."""

from .looks import BACKGROUND, CHAIN, GROUPS, OUTLINE, SKIP, STYLES, UNKNOWN, corners
from .scene import Curve, Layout
from .words import LABEL_SIZE, label, tooltip


def as_dot(scene: Layout) -> bytes:
    """For Graphviz: `dot` makes its own layout, `neato -n2` takes this one."""
    graph = scene.graph
    labels = {text.text for text in scene.texts if text.size == LABEL_SIZE}
    lines = [
        "digraph {",
        f'  graph [label={_quoted(scene.title)}, labelloc=t, bgcolor="{BACKGROUND}", forcelabels=true];',
        "  graph [outputorder=edgesfirst];",
        f'  node [label="", style=filled, color="{OUTLINE}", fixedsize=true, fontname=Helvetica, fontsize=10];',
        "  edge [arrowsize=0.4];",
    ]
    for i, (node, (x, y)) in enumerate(zip(graph.nodes, scene.xy, strict=True)):
        group, colour = STYLES.get(node.primitive, UNKNOWN)
        across, along = (max(c) - min(c) for c in zip(*corners(GROUPS[group], 0, 0), strict=True))
        attributes = {
            "shape": GROUPS[group].dot_shape,
            "fillcolor": colour,
            "width": f"{across / 72:.3f}",
            "height": f"{along / 72:.3f}",
            "pos": f"{x:.1f},{scene.height - y:.1f}",
            "tooltip": tooltip(node, scene.note[i]),
            "xlabel": label(node) if label(node) in labels else "",
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
