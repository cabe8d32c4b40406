"""`cache`: the finished weights that are kept on this machine."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..utils.progress import size_of
from .arguments import Command
from .messages import UserError, mistakes, table
from .results import plain, show

if TYPE_CHECKING:
    from ..weights.cache import Entry


def add(command: Command) -> None:
    sub = command("cache", cache, "cache prune --size 5GB")
    sub.add_argument("action", nargs="?", choices=list(_ACTIONS), default="list", help="default: %(default)s")
    sub.add_argument("key", nargs="?", help="for info: the beginning of a key in the list")
    sub.add_argument("--size", help="for prune, e.g. 5GB (default: TIMM_GHN_CACHE_SIZE)")


def cache(args: argparse.Namespace) -> int:
    """List the weights that are kept on this machine, show details, or remove some or all."""
    if args.key and args.action != "info":
        raise UserError(f"cache {args.action} takes no key.")
    if args.size and args.action != "prune":
        raise UserError(f"cache {args.action} takes no --size.")
    _ACTIONS[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from ..weights.cache import entries

    rows = [_row(entry) for entry in reversed(entries())]
    show(args, [row._asdict() for row in rows], lambda: table(_HEADER, map(_cells, rows)))


_HEADER = ("key", "size", "last used", "model", "source", "device")


class _Row(NamedTuple):
    """A file of the cache; `used` is None where it has a time that no calendar has."""

    key: str
    path: Path
    size: int
    used: str | None
    model: str
    source: str
    device: str


def _row(entry: "Entry") -> _Row:
    from datetime import datetime

    from ..weights.files import WeightsError, read_about

    try:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # of a clock, or a file system, that is out of its mind
        used = None
    try:
        about = read_about(entry.path)
    except (OSError, WeightsError):
        about = {"model": "(damaged)"}
    key = entry.path.name.partition("-")[0]
    said = [str(about.get(name, "")) for name in ("model", "source", "device")]
    return _Row(key, entry.path, entry.size, used, *said)


def _cells(row: _Row) -> tuple[object, ...]:
    return row.key[:12], size_of(row.size), row.used or "(no date)", row.model, row.source, row.device


def _info(args: argparse.Namespace) -> None:
    from ..weights import cache
    from ..weights.files import WeightsError, read

    found = cache.entries()
    if not args.key:
        with mistakes(ValueError):
            limit, is_on = cache.size_limit(), cache.is_on()
        size = sum(e.size for e in found)
        show(
            args,
            {"folder": cache.folder(), "files": len(found), "bytes": size, "most": limit, "always": is_on},
            f"folder: {cache.folder()}\n"
            f"files: {len(found)}, {size_of(size)} of at most {size_of(limit)}\n"
            f"used: {'always' if is_on else 'where it is asked for'}",
        )
        return
    matches = [e for e in found if e.path.name.startswith(args.key)]
    if len(matches) != 1:
        raise UserError(f"{len(matches) or 'no'} keys begin with {args.key}; timm-ghn-init cache lists all.")
    with mistakes(WeightsError, OSError):
        tensors, about = read(matches[0].path)
    data = {"path": matches[0].path, **about, "parameters": {name: list(t.shape) for name, t in tensors.items()}}
    show(args, data, json.dumps(plain(data), indent=2))


def _prune(args: argparse.Namespace) -> None:
    from ..weights.cache import prune, size_limit

    with mistakes(ValueError):
        limit = size_limit(args.size)
    _show_removed(args, prune(limit))


def _clear(args: argparse.Namespace) -> None:
    from ..weights.cache import clear

    _show_removed(args, clear())


def _show_removed(args: argparse.Namespace, removed: "list[Entry]") -> None:
    size = sum(e.size for e in removed)
    data = {"removed": [e.path for e in removed], "bytes": size}
    show(args, data, f"removed {len(removed)} files, {size_of(size)}")


_ACTIONS = {"list": _list, "info": _info, "prune": _prune, "clear": _clear}
