"""`enable`, `disable` and `completion`: what is set up once in an environment or a shell."""

import argparse
from collections.abc import Iterator

from ..sources import list_sources
from .arguments import command, flag, opt
from .messages import UserError, mistakes
from .results import show


@command("enable", flag("--status", "only print whether it is enabled; exit status 1 if not"))
def enable(args: argparse.Namespace) -> int:
    """Make timm know the sources in every program of this environment, without an import."""
    from ..integration.enabling import enable, enabled

    if not args.status:
        with mistakes(RuntimeError):
            file = enable()
        show(args, {"enabled": True, "files": [file]}, str(file))
        return 0
    found = enabled()
    show(args, {"enabled": bool(found), "files": found}, f"enabled by {found[0]}" if found else "not enabled")
    return 0 if found else 1


@command("disable")
def disable(args: argparse.Namespace) -> int:
    """Undo enable: programs know the sources only if they import this package."""
    from ..integration.enabling import disable

    removed = disable()
    show(args, {"enabled": False, "removed": removed}, "\n".join(map(str, removed)) or "not enabled")
    return 0


@command("completion bash", opt("shell", "the shell", choices=("bash", "zsh")))
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
        if action.help == argparse.SUPPRESS:  # of the commands, which --help lists in groups
            action.help = "a command"
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
