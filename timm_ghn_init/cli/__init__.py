"""The command line, `timm-ghn-init COMMAND`; `timm-ghn-init --help` lists the commands.

Exit status: 0; 1 if a check finds a difference; 2 with one line on stderr for a mistake of the user or a fault of
disk, memory or network; 130 after an interrupt. Results go to stdout, messages to stderr; with `--json` the results are
one JSON value. Each command or family of commands is one module here. Its `add` declares options only: what is slow to
import is imported when a command runs.
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
)
from .arguments import ArgumentParser, Run
from .errors import exit_status
from .messages import PROG, logging_to_stderr
from .results import results

GROUPS = {  # as in docs/guides/command-line.md
    "Initialise": (predict, bake, push),
    "Inspect": (inspect, graph, compare),
    "Measure": (finetune, report, tune, analyze),
    "GHNs": (ghns, training),
    "Set up": (enabling, cache, doctor, completion),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: by argparse, for `--help`, `--version` and wrong options.
        Exception: a bug.

    Example:
        >>> from timm_ghn_init.cli import main
        >>> main(["list"])  # doctest: +SKIP
        0
    """
    args = argparse.Namespace(resume_hint="")

    def work() -> int:
        _parser()[0].parse_args(argv, args)
        with logging_to_stderr(args.verbose - args.quiet), results(args):
            return args.run(args)

    return exit_status(work, lambda: args.resume_hint)


def commands() -> list[str]:
    """The names of all commands, in the order of `--help`."""
    return list(dict.fromkeys(name.partition(" ")[0] for name in _parser()[1]))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands by name ("predict", "analyze signal")."""
    root = _Root(prog=PROG)
    root.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    levels = {"": root.add_subparsers(metavar="COMMAND", required=True, parser_class=ArgumentParser)}
    parsers: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, run: Run, example: str, resume_hint: str = "") -> argparse.ArgumentParser:
        group, _, last = name.rpartition(" ")
        if group not in levels:
            parent = levels[""].add_parser(group, help=f"see {PROG} {group} --help")
            levels[group] = parent.add_subparsers(metavar="COMMAND", required=True)
        text = run.__doc__ or ""
        parsers[name] = sub = levels[group].add_parser(last, help=_summary(text), description=text)
        sub.more = f"\nexample:\n  {PROG} {example}\n"
        sub.set_defaults(run=run, resume_hint=resume_hint, parser=root)
        return sub

    for title, families in GROUPS.items():
        first = len(parsers)
        for family in families:
            family.add(command)
        root.listing += f"\n{title}:\n"
        for name, sub in list(parsers.items())[first:]:
            root.listing += f"  {name:21} {_summary(sub.description or '')}\n"
            sub.add_argument("-v", "--verbose", action="count", default=0, help="more messages; repeatable")
            sub.add_argument("-q", "--quiet", action="count", default=0, help="fewer messages; repeatable")
            sub.add_argument("--json", action="store_true", help="print the results as JSON on stdout, for programs")
    return root, parsers


def _summary(text: str) -> str:
    """The first sentence of a docstring."""
    return " ".join(text.split(".\n")[0].split()).rstrip(".")


class _Root(ArgumentParser):
    """The parser whose help lists the commands in groups, which argparse does not do."""

    listing = ""

    def format_help(self) -> str:
        return (
            f"usage: {PROG} COMMAND ...\n\nInitialise timm architectures with predicted parameters.\n{self.listing}\n"
            f"options:\n  -h, --help            show this help, or that of a command after its name\n"
            f"  --version             show the version\n\n"
            f"`python -m timm_ghn_init train.py ARGS` runs an unchanged script that may name sources.\n"
        )
