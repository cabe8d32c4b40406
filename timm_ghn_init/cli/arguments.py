"""Options that several commands share, named as in timm's scripts."""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..sources import SUFFIXES, Source, is_source, parse_source
from ..utils.checks import FINITE, POSITIVE, Kind
from ..utils.checks import whole as whole_number
from ..utils.text import did_you_mean
from .messages import PROG, one_line
from .results import write_out

Run = Callable[[argparse.Namespace], int]
AGAIN = "run the same command again to continue"


class Command(Protocol):
    """Declares a command. Its help is the docstring of `run`; `example` is what follows the program's name.

    `resume_hint` says how to continue after an interrupt.
    """

    def __call__(self, name: str, run: Run, example: str, resume_hint: str = "") -> argparse.ArgumentParser: ...


class ArgumentParser(argparse.ArgumentParser):
    """A mistake is one line that points to --help and names similar options or commands; help ends with `more`."""

    more = ""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"COMMAND: invalid choice: '([^']*)'|unrecognized arguments: (--[\w-]+)", message)
        known = re.findall(r"--[\w-]+|[a-z][\w-]+", message.partition("choose from")[2] or self.format_usage())
        close = did_you_mean(wrong[1] or wrong[2], known) if wrong else ""
        self.exit(2, f"{PROG}: error: {one_line(message)}{'.' * bool(close)}{close} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here, so that the error is about the options of this command
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def format_help(self) -> str:
        return super().format_help() + self.more

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version, for `write_out`
        if file is sys.stdout:
            write_out(message.rstrip("\n"))
        else:
            super()._print_message(message, file)


def option(kind: Kind) -> Callable[[str], Any]:
    """The type of an option whose value is of a kind."""

    def read(text: str) -> Any:
        try:
            return kind.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def whole(low: int = 0, high: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number, at least `low` and at most `high`."""
    return option(whole_number(low) if high is None else whole_number(low, high))


def seconds(text: str) -> float:
    """The type of an option that takes a time: "90m", "1.5h", "20s" or a number of seconds."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m, 1.5h or 600")
    return option(POSITIVE)(str(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]))


def key_value(text: str) -> tuple[str, Any]:
    """The type of key=value options; a value is a Python literal if it can be read as one, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, literal(value)


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        return text


number = option(FINITE)


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """An architecture and its options."""
    parser.add_argument("arch", metavar="ARCH", help="a timm architecture")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Arguments of `timm.create_model`."""
    parser.add_argument(
        "--num-classes", type=whole(0), metavar="N", help="classes of the last layer (default: the architecture's)"
    )
    parser.add_argument("--in-chans", type=whole(1), metavar="C", help="input channels (default: the architecture's)")
    parser.add_argument(
        "--img-size", type=whole(1), metavar="H", help="input height and width, pixels (default: the architecture's)"
    )
    parser.add_argument(
        "--model-kwargs", nargs="*", default=(), type=key_value, metavar="KEY=VALUE",
        help="other arguments of timm.create_model (default: none)",
    )  # fmt: skip


def add_data(sub: argparse.ArgumentParser, first: str, default: str = "") -> None:
    """Images by name or folder.

    Args:
        first: the default, also if only this command has it ("noise").
        default: says how the command chooses images if none are named; then the option's default is None.
    """
    names = dict.fromkeys((first, "digits", "cifar10", "fashion-mnist", "letters"))
    text = f"images: {', '.join(names)} or a folder (default: {default or first})"
    sub.add_argument("--data", default=None if default else first, help=text)
    sub.add_argument("--data-dir", metavar="DIR", help="folder of named data sets, for downloads too (default: data)")


def add_source(parser: argparse.ArgumentParser, default: str, what: str = "a source, see `list`") -> None:
    """One source."""
    parser.add_argument("--source", type=as_source, default=default, help=f"{what} (default: %(default)s)")


def add_needed_source(parser: argparse.ArgumentParser, what: str) -> None:
    """One source without a default, with or without the word --source."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--source", type=as_source, help=f"{what} (required)")
    either.add_argument("source", type=as_source, nargs="?", default=argparse.SUPPRESS, help="the same")


def add_sources(parser: argparse.ArgumentParser, default: Sequence[str], what: str) -> None:
    """Several sources, or "pretrained" and "timm"."""
    parser.add_argument("--source", nargs="+", type=as_source, default=list(default), help=what)


def as_source(text: str) -> str:
    """A source; a path stands for file:PATH, also if there is no such file, which its reader reports."""
    is_path = any(suffix in text for suffix in SUFFIXES) or len(Path(text).parts) > 1
    return f"file:{text}" if is_path and (Path(text).is_file() or not is_source(text)) else text


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """The source, the seed and the device of a prediction."""
    add_source(parser, "ghn-orth")
    parser.add_argument("--seed", type=whole(0), help="seed of everything random (default: the source's, else 0)")
    parser.add_argument("--device", help="where to predict, e.g. cuda:0 (default: CUDA if available, else CPU)")
    add_patterns(parser)


def add_patterns(parser: argparse.ArgumentParser) -> None:
    """Which parameters a source initialises."""
    for name, what in (("only", "initialise only"), ("skip", "leave")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            metavar="PATTERN",
            help=f"{what} parameters of these names, e.g. 'blocks.*' (default: no restriction)",
        )


def read_source(args: argparse.Namespace) -> Source:
    """The source of a command that has `add_patterns`, its parts with these patterns."""
    chosen = {name: value for name in ("only", "skip") if (value := getattr(args, name))}
    parts = [replace(part, **chosen) for part in parse_source(args.source).parts]
    return parse_source("+".join(map(str, parts)))
