"""`graph`: the graph of an architecture as a picture."""

import argparse

from ..sources import DEFAULT
from .arguments import Command, add_architecture
from .files import output_path
from .messages import mistakes
from .models import trace_model


def add(command: Command) -> None:
    sub = command("graph", graph)
    add_architecture(sub)
    sub.add_argument("--source", default=DEFAULT, help="whose graph: GHN-3's differs (default: %(default)s)")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.svg|png|pdf|dot")
    sub.add_argument(
        "--labels",
        action=argparse.BooleanOptionalAction,
        help="primitive and shape beside each node (default: where no more than 200 are drawn)",
    )
    sub.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="draw rows of equal blocks once (default: in graphs of more than 200 nodes)",
    )


def graph(args: argparse.Namespace) -> int:
    """Draw the graph of an architecture, without a checkpoint."""
    from ..draw import FORMATS, MOST_LABELLED_NODES, draw

    output = output_path(args.output, tuple(FORMATS))
    _, traced = trace_model(args)
    with mistakes(OSError, ImportError):
        folded = len(traced.nodes) > MOST_LABELLED_NODES if args.fold is None else args.fold
        draw(traced, output, title=args.arch, labels=args.labels, folded=folded)
    print(output)
    return 0
