"""What a command has found: text for people, or with --json one JSON value on stdout for programs, and nothing else."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from os import PathLike, fspath
from typing import Any


def add_json(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """The option, which every command has."""
    parser.add_argument("--json", action="store_true", default=default, help="results as JSON on stdout, for programs")


def show(args: argparse.Namespace, data: Any, text: str | Callable[[], str]) -> None:
    """Give the results of a command, once.

    Args:
        data: for programs.
        text: the same for people, or what makes it.
    """
    if args.json:
        args.results = data
    else:
        print(text if isinstance(text, str) else text())


@contextmanager
def results(args: argparse.Namespace) -> Iterator[None]:
    """With --json whatever else is printed goes to stderr, libraries' output included, and results come at the end."""
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
    if hasattr(args, "results"):  # of several ranks, one has some
        print(json.dumps(plain(args.results), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """What JSON can hold: null for numbers that are not finite, which it does not know, and text for paths."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return fspath(value) if isinstance(value, PathLike) else value
