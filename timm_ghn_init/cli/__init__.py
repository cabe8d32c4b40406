"""The command line, `timm-ghn-init COMMAND`; `timm-ghn-init --help` lists the commands.

Exit status: 0; 1 if a check finds a difference; 2 with one line on stderr for a mistake of the user or a fault of
disk, memory or network; 130 after an interrupt. Results go to stdout, messages to stderr; with `--json` the results are
one JSON value. Each module declares a command or a family of commands; what is slow to import is imported when a
command runs.
"""

import argparse
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from inspect import cleandoc

from ..version import __version__
from . import analyze, bake, cache, compare, doctor, finetune, ghns, graph, predict, setup
from .arguments import ArgumentParser, flag, opt
from .errors import exit_status
from .messages import PROG, logging_to_stderr
from .results import results

GROUPS = {  # as in docs/guides/command-line.md
    "Initialise": (predict.predict, bake.bake, predict.push),
    "Inspect": (graph.inspect, graph.graph, compare.compare),
    "Measure": (
        *(finetune.finetune, finetune.report, finetune.tune),
        *(analyze.correlations, analyze.signal, analyze.embed),
    ),
    "GHNs": (ghns.list_known, ghns.fetch, ghns.train_ghn, ghns.eval_ghn),
    "Set up": (setup.enable, setup.disable, cache.cache, doctor.doctor, setup.completion),
}
_ALL_HAVE = (
    opt("-v --verbose", "more messages; repeatable", default=0, action="count"),
    opt("-q --quiet", "fewer messages; repeatable", default=0, action="count"),
    flag("--json", "print the results as JSON on stdout, for programs"),
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
    return list(dict.fromkeys(command.name.partition(" ")[0] for group in GROUPS.values() for command in group))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands by name ("predict", "analyze signal")."""
    root = ArgumentParser(prog=PROG, usage=f"{PROG} COMMAND ...", formatter_class=RawDescriptionHelpFormatter)
    root.add_argument("--version", action="version", version=f"{PROG} {__version__}", help="show the version")
    root.epilog = "`python -m timm_ghn_init train.py ARGS` runs an unchanged script that may name sources."
    listing = ["Initialise timm architectures with predicted parameters."]
    levels = {"": root.add_subparsers(prog=PROG, metavar="COMMAND", required=True, help=argparse.SUPPRESS)}
    parsers: dict[str, argparse.ArgumentParser] = {}
    for title, family in GROUPS.items():
        listing.append(f"\n{title}:")
        for name, run, example, options, resume_hint in family:
            level, _, last = name.rpartition(" ")
            if level not in levels:
                parent = levels[""].add_parser(level, help=f"see {PROG} {level} --help")
                levels[level] = parent.add_subparsers(metavar="COMMAND", required=True)
            text = cleandoc(run.__doc__ or "")
            summary = " ".join(text.split(".\n")[0].split()).rstrip(".")  # the first sentence
            parsers[name] = sub = levels[level].add_parser(
                last, help=summary, description=text, epilog=f"example:\n  {PROG} {example}",
                formatter_class=RawDescriptionHelpFormatter,
            )  # fmt: skip
            for declare in (*options, *_ALL_HAVE):
                declare(sub)
            sub.set_defaults(run=run, resume_hint=resume_hint, parser=root)
            listing.append(f"  {name:21} {summary}")
    root.description = "\n".join(listing)
    return root, parsers
