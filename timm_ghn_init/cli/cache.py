"""`cache`: the finished weights that are kept on this machine."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..utils.progress import size_of
from .arguments import command, opt
from .messages import UserError, table
from .results import plain, show

if TYPE_CHECKING:
    from ..weights.cache import Entry


@command(
    "cache prune --size 5GB",
    opt("action", "what to do", default="list", nargs="?", choices=("list", "info", "prune", "clear")),
    opt("key", "for info: the beginning of a key in the list", nargs="?"),
    opt("--size", "for prune, e.g. 5GB (default: TIMM_GHN_CACHE_SIZE)"),
)
def cache(args: argparse.Namespace) -> int:
    """List the weights that are kept on this machine, show details, or remove some or all."""
    if args.key and args.action != "info":
        raise UserError(f"cache {args.action} takes no key.")
    if args.size and args.action != "prune":
        raise UserError(f"cache {args.action} takes no --size.")
    from ..weights.cache import clear, entries, prune, size_limit

    if args.action == "list":
        rows = [_row(entry) for entry in reversed(entries())]
        show(args, rows, lambda: table(_HEADER, map(_cells, rows)))
    elif args.action == "info":
        _info(args)
    else:
        removed = clear() if args.action == "clear" else prune(size_limit(args.size))
        size = sum(e.size for e in removed)
        data = {"removed": [e.path for e in removed], "bytes": size}
        show(args, data, f"removed {len(removed)} files, {size_of(size)}")
    return 0


_HEADER = ("key", "size", "last used", "model", "source", "device")


def _row(entry: "Entry") -> dict[str, Any]:
    from datetime import datetime

    from ..weights.files import WeightsError, read_about

    try:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # a wrong clock, or a damaged file system
        used = None
    try:
        about = read_about(entry.path)
    except (OSError, WeightsError):
        about = {"model": "(damaged)"}
    said = {name: str(about.get(name, "")) for name in ("model", "source", "device")}
    return {"key": entry.path.name.partition("-")[0], "path": entry.path, "size": entry.size, "used": used, **said}


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    dated = row["used"] or "(no date)"
    return row["key"][:12], size_of(row["size"]), dated, row["model"], row["source"], row["device"]


def _info(args: argparse.Namespace) -> None:
    from ..weights import cache
    from ..weights.files import read

    found = cache.entries()
    if not args.key:
        size, limit, is_on = sum(e.size for e in found), cache.size_limit(), cache.is_on()
        text = (
            f"folder: {cache.folder()}\n"
            f"files: {len(found)}, {size_of(size)} of at most {size_of(limit)}\n"
            f"used: {'always' if is_on else 'where it is asked for'}"
        )
        data = {"folder": cache.folder(), "files": len(found), "bytes": size, "most": limit, "always": is_on}
        show(args, data, text)
        return
    matches = [e for e in found if e.path.name.startswith(args.key)]
    if len(matches) != 1:
        raise UserError(f"{len(matches) or 'no'} keys begin with {args.key}; timm-ghn-init cache lists all.")
    tensors, about = read(matches[0].path)
    details = {"path": matches[0].path, **about, "parameters": {name: list(t.shape) for name, t in tensors.items()}}
    show(args, details, json.dumps(plain(details), indent=2))
