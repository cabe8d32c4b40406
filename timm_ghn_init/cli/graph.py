"""`graph`: the graph of an architecture as a picture."""

import argparse

from ..sources import DEFAULT
from .arguments import Command, add_architecture, add_source
from .files import output_path
from .messages import mistakes
from .models import read_ghn, trace_model
from .results import show


def add(command: Command) -> None:
    sub = command("graph", graph, "graph resnet18 -o resnet18.svg")
    add_architecture(sub)
    add_source(sub, DEFAULT, "the GHN that reads the graph: GHN-3 reads another one than GHN-2")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.svg|png|pdf", help="the picture (required)")
    sub.add_argument(
        "--labels", action=argparse.BooleanOptionalAction,
        help="write primitive and shape next to each node (default: if at most 200 nodes are drawn)",
    )  # fmt: skip
    sub.add_argument(
        "--fold", action=argparse.BooleanOptionalAction,
        help="draw rows of equal blocks once (default: in graphs of more than 200 nodes)",
    )  # fmt: skip


def graph(args: argparse.Namespace) -> int:
    """Draw the primitive graph of an architecture; no checkpoint is needed."""
    from ..lab.draw import FORMATS, MOST_LABELLED_NODES, draw

    output = output_path(args.output, FORMATS)
    _, traced = trace_model(args, read_ghn(args.source).dialect)
    folded = len(traced.nodes) > MOST_LABELLED_NODES if args.fold is None else args.fold
    with mistakes(ImportError):
        draw(traced, output, title=args.arch, labels=args.labels, folded=folded)
    show(args, {"output": output, "nodes": len(traced.nodes), "edges": len(traced.edges)}, str(output))
    return 0
