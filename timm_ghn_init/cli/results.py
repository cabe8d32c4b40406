"""The output of a command on stdout: text for people or, with --json, one JSON value for programs and nothing else."""

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from .messages import UserError


def show(args: argparse.Namespace, data: Any, text: str | Callable[[], str]) -> None:
    """Show the results of a command, once.

    Args:
        args: the command's options; with `--json`, `results` prints `data` when the command ends.
        data: the results for programs.
        text: the same for people, or a function that formats it.
    """
    if args.json:
        args.results = data
    else:
        write_out(text if isinstance(text, str) else text())


@contextmanager
def results(args: argparse.Namespace) -> Iterator[None]:
    """With --json, what libraries print goes to stderr, and the results are printed at the end."""
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
    if hasattr(args, "results"):  # under torchrun, only rank 0 has results
        write_out(json.dumps(plain(args.results), indent=2, allow_nan=False))


def write_out(text: str | None = None) -> None:
    """Print a text and flush. Characters that the terminal cannot show are escaped; a closed pipe (`| head`) is fine.

    Raises:
        UserError: stdout cannot be written, e.g. on a full disk.
    """
    if sys.stdout is None:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        if text is not None:
            print(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # or Python tries to flush again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            raise UserError(f"Standard output cannot be written: {error.strerror}.") from error


def plain(value: Any) -> Any:
    """A value that JSON can hold: null for numbers that are not finite, and text for paths."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
