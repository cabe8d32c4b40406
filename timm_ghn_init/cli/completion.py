"""`completion`: the shell completes commands, options and files."""

import argparse
from collections.abc import Iterator

from .arguments import Command
from .messages import UserError
from .results import show

SHELLS = ("bash", "zsh")


def add(command: Command) -> None:
    sub = command("completion", completion)
    sub.add_argument("shell", choices=SHELLS)


def completion(args: argparse.Namespace) -> int:
    """Print what makes a shell complete commands and options: eval "$(timm-ghn-init completion bash)"."""
    try:
        import shtab
    except ImportError as error:
        raise UserError(
            'Completion is written by shtab, which is not installed: pip install "timm-ghn-init[completion]".'
        ) from error
    for action in _actions(args.parser):
        kind = _completed(action)
        if kind:
            action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]  # how shtab is told
    script = shtab.complete(args.parser, args.shell)
    show(args, {"shell": args.shell, "script": script}, script)
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)


def _completed(action: argparse.Action) -> str:
    """The name of shtab's completion for an option that takes a file or a folder, by what its help calls it."""
    name = action.metavar if isinstance(action.metavar, str) else ""
    if name.startswith(("FILE", "RUNS", "REPORT")):
        return "FILE"
    return "DIRECTORY" if name.startswith("DIR") else ""
