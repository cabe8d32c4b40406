"""`cache`: the finished weights that are kept on this machine."""

import argparse
import json
from typing import TYPE_CHECKING

from .arguments import Command
from .messages import UserError, mistakes, table

if TYPE_CHECKING:
    from ..weights.cache import Entry


def add(command: Command) -> None:
    sub = command("cache", cache)
    sub.add_argument("action", nargs="?", choices=list(_ACTIONS), default="list", help="default: %(default)s")
    sub.add_argument("key", nargs="?", help="for info: the beginning of a key in the list")
    sub.add_argument("--size", help="for prune, e.g. 5GB (default: TIMM_GHN_CACHE_SIZE)")


def cache(args: argparse.Namespace) -> int:
    """List the weights that are kept on this machine, tell more, remove the least recently used ones, or all."""
    if args.key and args.action != "info":
        raise UserError(f"cache {args.action} takes no key.")
    if args.size and args.action != "prune":
        raise UserError(f"cache {args.action} takes no --size.")
    _ACTIONS[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from ..weights.cache import entries

    rows = [_row(entry) for entry in reversed(entries())]
    print(table(("key", "size", "last used", "model", "source", "device"), rows))


def _row(entry: "Entry") -> tuple[object, ...]:
    from datetime import datetime

    from ..weights.files import WeightsError, read_about

    try:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # of a clock, or a file system, that is out of its mind
        used = "(no date)"
    try:
        about = read_about(entry.path)
    except (OSError, WeightsError):
        about = {"model": "(damaged)"}
    return entry.path.name[:12], _bytes(entry.size), used, *(about.get(k, "") for k in ("model", "source", "device"))


def _info(args: argparse.Namespace) -> None:
    from ..weights import cache
    from ..weights.files import WeightsError, read

    found = cache.entries()
    if not args.key:
        with mistakes(ValueError):
            limit, is_on = cache.size_limit(), cache.is_on()
        print(f"folder: {cache.folder()}")
        print(f"files: {len(found)}, {_bytes(sum(e.size for e in found))} of at most {_bytes(limit)}")
        print(f"used: {'always' if is_on else 'where it is asked for'}")
        return
    matches = [e for e in found if e.path.name.startswith(args.key)]
    if len(matches) != 1:
        raise UserError(f"{len(matches) or 'no'} keys begin with {args.key}; timm-ghn-init cache lists all.")
    with mistakes(WeightsError, OSError):
        tensors, about = read(matches[0].path)
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    print(json.dumps({"path": str(matches[0].path), **about, "parameters": shapes}, indent=2))


def _prune(args: argparse.Namespace) -> None:
    from ..weights.cache import prune, size_limit

    with mistakes(ValueError):
        limit = size_limit(args.size)
    _print_removed(prune(limit))


def _clear(args: argparse.Namespace) -> None:
    from ..weights.cache import clear

    _print_removed(clear())


def _print_removed(removed: "list[Entry]") -> None:
    print(f"removed {len(removed)} files, {_bytes(sum(e.size for e in removed))}")


def _bytes(count: int) -> str:
    from tqdm import tqdm

    return tqdm.format_sizeof(count, "B")


_ACTIONS = {"list": _list, "info": _info, "prune": _prune, "clear": _clear}
