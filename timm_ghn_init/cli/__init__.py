"""The command line, `timm-ghn-init COMMAND`; `timm-ghn-init --help` lists the commands.

Exit status: 0; 1 where a check finds a difference; 2 with one line on stderr for a mistake of the user. Results go to
stdout, all else to stderr. One module here for each command or family of commands; each has an `add`, which declares
options and no more, and what is slow to import is imported when a command runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from ..text import logger
from ..version import __version__
from . import (
    analyze,
    bake,
    cache,
    compare,
    completion,
    enabling,
    finetune,
    ghns,
    graph,
    inspect,
    predict,
    push,
    report,
    training,
    tune,
    verify,
)
from .arguments import PROG, ArgumentParser, Run
from .messages import is_mistake, logging_to_stderr, one_line

_logger = logger(__name__)

FAMILIES = (  # in the order of --help
    *(predict, inspect, graph, ghns),
    *(analyze, compare, finetune, tune, report, training),
    *(cache, push, bake, verify),
    *(enabling, completion),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: by argparse, for `--help`, `--version` and wrong options.
    """
    args = _parser()[0].parse_args(argv)
    with logging_to_stderr(args.verbose - args.quiet):
        try:
            status = args.run(args)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader, `head` for instance, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if not is_mistake(error):
                raise
            _logger.debug("Traceback:", exc_info=True)
            print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
            return 2


def commands() -> list[str]:
    """The names of all commands, in the order of `--help`."""
    return _parser()[1]


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser and the names of its commands."""
    parser = ArgumentParser(
        prog=PROG,
        description="Initialise timm architectures with predicted parameters.",
        epilog="`python -m timm_ghn_init train.py ARGS` runs an unchanged script that may name sources.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, parser=parser)
        sub.add_argument("-v", "--verbose", action="count", default=0, help="more messages")
        sub.add_argument("-q", "--quiet", action="count", default=0, help="fewer messages")
        return sub

    for family in FAMILIES:
        family.add(command)
    return parser, list(commands.choices)
