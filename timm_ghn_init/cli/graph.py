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
    sub.add_argument("-o", "--output", required=True, metavar="FILE.svg|png|dot")


def graph(args: argparse.Namespace) -> int:
    """Draw the graph of an architecture, without a checkpoint."""
    from ..draw import FORMATS, draw

    output = output_path(args.output, tuple(FORMATS))
    _, traced = trace_model(args)
    with mistakes(OSError, ImportError):
        draw(traced, output, title=args.arch)
    print(output)
    return 0
