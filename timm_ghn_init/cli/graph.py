"""`graph`: the graph of an architecture as a picture."""

import argparse

from ..sources import DEFAULT
from .arguments import Command, add_architecture, add_source
from .files import output_path
from .messages import mistakes
from .models import read_ghn, trace_model
from .results import show


def add(command: Command) -> None:
    sub = command("graph", graph)
    add_architecture(sub)
    add_source(sub, DEFAULT, "whose graph: GHN-3's differs")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.svg|png|pdf")
    sub.add_argument(
        "--labels",
        action=argparse.BooleanOptionalAction,
        help="primitive and shape next to each node (default: in graphs of at most 200 nodes)",
    )
    sub.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="draw a row of equal blocks once (default: in graphs of more than 200 nodes)",
    )


def graph(args: argparse.Namespace) -> int:
    """Draw the graph of an architecture, without a checkpoint."""
    from ..lab.draw import FORMATS, MOST_LABELLED_NODES, draw

    output = output_path(args.output, FORMATS)
    _, traced = trace_model(args, read_ghn(args.source).dialect)
    with mistakes(ImportError):
        folded = len(traced.nodes) > MOST_LABELLED_NODES if args.fold is None else args.fold
        draw(traced, output, title=args.arch, labels=args.labels, folded=folded)
    show(args, {"output": output, "nodes": len(traced.nodes), "edges": len(traced.edges)}, str(output))
    return 0
