"""Options in the words of timm's scripts."""

import argparse
import ast
import re
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from .messages import one_line

PROG = "timm-ghn-init"
Run = Callable[[argparse.Namespace], int]


class Command(Protocol):
    """Declares a command; its help is the docstring of what runs it."""

    def __call__(self, name: str, run: Run) -> argparse.ArgumentParser: ...


def nested(parser: argparse.ArgumentParser) -> Command:
    """What declares the commands of a command; -v and -q may stand before them and after them."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        for option in ("-v", "--verbose"), ("-q", "--quiet"):
            sub.add_argument(*option, action="count", default=argparse.SUPPRESS, help="as before the command")
        return sub

    return command


class ArgumentParser(argparse.ArgumentParser):
    """One line for a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {one_line(message)} (see {self.prog} --help)\n")


class KeyValue(argparse.Action):
    """key=value ..., values as Python literals where they are some; timm's scripts read `--model-kwargs` so."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        pairs = dict(getattr(namespace, self.dest))
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                parser.error(f"argument {option}: {text!r} is not key=value")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number, of which `least` is the smallest."""

    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return number

    read.__name__ = "whole number"  # argparse: "invalid whole number value"
    return read


def seconds(text: str) -> float:
    """The type of an option that takes a time: "90m", "1.5h", "20s" or a number of seconds."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90m, 1.5h or 600")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """An architecture, and its options."""
    parser.add_argument("arch", metavar="ARCH", help="an architecture of timm")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options in the words of timm's scripts."""
    parser.add_argument("--num-classes", type=whole(0), metavar="N")
    parser.add_argument("--in-chans", type=whole(1), metavar="C")
    parser.add_argument("--img-size", type=whole(1), metavar="H", help="of models that are built for one size")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=KeyValue, metavar="KEY=VALUE")


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """What predicts, from which seed, and where."""
    parser.add_argument("--source", default="ghn-orth", help="which GHN, see list (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), help="of all that is random (default: the source's own, else 0)")
    parser.add_argument("--device", help="where to predict (default: CUDA if there is one, else CPU)")
