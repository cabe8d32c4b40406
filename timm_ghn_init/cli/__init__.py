"""The command line, `timm-ghn-init COMMAND`; `timm-ghn-init --help` lists the commands.

Exit status: 0; 1 where a check finds a difference; 2 with one line on stderr for a mistake of the user or a fault of
disk, memory or network; 130 for an interrupt. Results go to stdout, all else to stderr; with `--json` they are one JSON
value. One module here for each command or family of commands; each has an `add`, which declares options and no more,
and what is slow to import is imported when a command runs.
"""

import argparse
from collections.abc import Sequence

from ..version import __version__
from . import (
    analyze,
    bake,
    cache,
    compare,
    completion,
    doctor,
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
from .messages import logging_to_stderr
from .results import add_json, results
from .way_out import leave

FAMILIES = (  # in the order of --help
    *(predict, inspect, graph, ghns),
    *(analyze, compare, finetune, tune, report, training),
    *(cache, push, bake, verify),
    *(enabling, doctor, completion),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: by argparse, for `--help`, `--version` and wrong options.
        Exception: a bug.
    """
    args = argparse.Namespace(go_on="")

    def work() -> int:
        _parser()[0].parse_args(argv, args)
        with logging_to_stderr(args.verbose - args.quiet), results(args):
            return args.run(args)

    return leave(work, lambda: args.go_on)


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

    def command(name: str, run: Run, go_on: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, go_on=go_on, parser=parser)
        sub.add_argument("-v", "--verbose", action="count", default=0, help="more messages")
        sub.add_argument("-q", "--quiet", action="count", default=0, help="fewer messages")
        add_json(sub)
        return sub

    for family in FAMILIES:
        family.add(command)
    return parser, list(commands.choices)
