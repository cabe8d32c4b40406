"""`completion`: the shell completes commands, options, sources and files."""

import argparse
from collections.abc import Iterator

from ..sources import list_sources
from .arguments import Command
from .messages import UserError
from .results import show


def add(command: Command) -> None:
    sub = command("completion", completion, "completion bash")
    sub.add_argument("shell", choices=("bash", "zsh"), help="the shell")


def completion(args: argparse.Namespace) -> int:
    """Print a script that makes a shell complete commands, options and sources.

    To try it: eval "$(timm-ghn-init completion bash)".
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError(
            "Completion needs shtab, which is not installed: pip install '.[completion]' in a checkout."
        ) from error
    names = " ".join(map(str, list_sources()))
    preamble = {"bash": f'_timm_ghn_init_sources() {{ compgen -W "{names}" -- "$1"; }}'}
    for action in _actions(args.parser):
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if metavar.startswith(("FILE", "RUNS", "REPORT")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads this attribute
        elif action.dest == "source":
            action.complete = {"bash": "_timm_ghn_init_sources", "zsh": f"({names})"}  # type: ignore[attr-defined]
        elif metavar.startswith("DIR"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script = shtab.complete(args.parser, args.shell, preamble=preamble)  # type: ignore[arg-type]  # a dict, too
    show(args, {"shell": args.shell, "script": script}, script)
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
