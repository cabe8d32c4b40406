"""`enable` and `disable`: the sources in every program of an environment, without an import."""

import argparse

from .arguments import Command
from .messages import mistakes
from .results import show


def add(command: Command) -> None:
    sub = command("enable", enable, "enable")
    sub.add_argument("--status", action="store_true", help="only print whether it is enabled; exit status 1 if not")
    command("disable", disable, "disable")


def enable(args: argparse.Namespace) -> int:
    """Make timm know the sources in every program of this environment, without an import."""
    from ..integration.enabling import enable, enabled

    if not args.status:
        with mistakes(RuntimeError, OSError):
            file = enable()
        show(args, {"enabled": True, "files": [file]}, str(file))
        return 0
    found = enabled()
    show(args, {"enabled": bool(found), "files": found}, f"enabled by {found[0]}" if found else "not enabled")
    return 0 if found else 1


def disable(args: argparse.Namespace) -> int:
    """Undo enable: programs know the sources only if they import this package."""
    from ..integration.enabling import disable

    with mistakes(OSError):
        removed = disable()
    show(args, {"enabled": False, "removed": removed}, "\n".join(map(str, removed)) or "not enabled")
    return 0
