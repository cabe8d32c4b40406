"""Options in the words of timm's scripts."""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..sources import SUFFIXES, is_source
from ..utils.checks import FINITE, POSITIVE, Kind
from ..utils.checks import whole as whole_number
from ..utils.text import did_you_mean
from .messages import PROG, one_line
from .results import add_json

Run = Callable[[argparse.Namespace], int]
AGAIN = "run the same command again to go on"


class Command(Protocol):
    """Declares a command; its help is the docstring of what runs it, `go_on` what to do after an interrupt."""

    def __call__(self, name: str, run: Run, go_on: str = "") -> argparse.ArgumentParser: ...


def nested(parser: argparse.ArgumentParser) -> Command:
    """What declares the commands of a command; -v, -q and --json may stand before them and after them."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run, go_on: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, go_on=go_on)
        for option in ("-v", "--verbose"), ("-q", "--quiet"):
            sub.add_argument(*option, action="count", default=argparse.SUPPRESS, help="as before the command")
        add_json(sub, argparse.SUPPRESS)
        return sub

    return command


class ArgumentParser(argparse.ArgumentParser):
    """One line for a mistake, without the usage; the help that it points to is that of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {one_line(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)  # argparse's own passes over errors

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is None:  # before what is missing because of it
            self._refuse([arg for arg in takewhile(lambda arg: arg != "--", args or ()) if self._is_unknown(arg)])
        namespace, rest = super().parse_known_args(args, namespace)
        self._refuse(rest)
        return namespace, rest

    def _is_unknown(self, argument: str) -> bool:
        name, known = argument.partition("=")[0], self._option_string_actions
        return name.startswith("--") and not any(option.startswith(name) for option in known)

    def _refuse(self, rest: list[str]) -> None:
        if rest:
            known = self._option_string_actions.items()
            options = [name for name, action in known if name.startswith("--") and not _is_hidden(action)]
            close = did_you_mean(rest[0].partition("=")[0], options) if rest[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{'.' * bool(close)}{close}")

    def _get_option_tuples(self, option_string: str) -> Any:
        found: Any = super()._get_option_tuples(option_string)  # type: ignore[misc]  # what an abbreviation may mean
        return [option for option in found if not _is_hidden(option[0])] or found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action.choices, dict) and value not in action.choices:  # of commands
            names = list(action.choices)
            close = did_you_mean(value, names) or f" There are {', '.join(names)}."
            raise argparse.ArgumentError(None, f"{value!r} is no command.{close}")
        super()._check_value(action, value)


def _is_hidden(action: argparse.Action) -> bool:
    """Whether help does not show it: it is an old spelling."""
    return action.help == argparse.SUPPRESS


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
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # or too deep for a literal
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def option(kind: Kind) -> Callable[[str], Any]:
    """The type of an option whose value is of a kind."""

    def read(text: str) -> Any:
        try:
            return kind.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def whole(low: int = 0, high: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number, from `low` on or up to `high`."""
    return option(whole_number(low) if high is None else whole_number(low, high))


def seconds(text: str) -> float:
    """The type of an option that takes a time: "90m", "1.5h", "20s" or a number of seconds."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90m, 1.5h or 600")
    return option(POSITIVE)(str(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]))


number = option(FINITE)


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


# What a GHN or a baseline is named by, in every command: --source, an option as timm's scripts have --model. Several
# stand one after the other, as in timm's --mean. Commands of 0.1 had names of their own for it, which still work.


def add_data(sub: argparse.ArgumentParser, first: str, default: str = "") -> None:
    """Images by name or folder. What only some commands have ("noise") or is the default comes `first`.

    It is the default, or the command finds one when it runs: then `default` says which.
    """
    names = dict.fromkeys((first, "digits", "cifar10", "fashion-mnist", "letters"))
    text = f"{', '.join(names)} or a folder (default: {default or first})"
    sub.add_argument("--data", default=None if default else first, help=text)
    sub.add_argument("--data-dir", metavar="DIR", help="where named data sets are, or go to (default: data)")


def add_source(parser: argparse.ArgumentParser, default: str, what: str = "which GHN, see list", *old: str) -> None:
    """One source; `old` are other spellings of the option."""
    parser.add_argument("--source", type=as_source, default=default, help=f"{what} (default: %(default)s)")
    for name in old:
        parser.add_argument(name, type=as_source, dest="source", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_needed_source(parser: argparse.ArgumentParser, what: str) -> None:
    """One source that must be named, once as an argument without --source."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--source", type=as_source, help=what)
    either.add_argument("source", type=as_source, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_sources(parser: argparse.ArgumentParser, default: Sequence[str], what: str, *old: str) -> None:
    """Several sources, or "pretrained" and "timm"; `old` are other spellings of the option, with commas."""
    parser.add_argument("--source", nargs="+", action=_Several, default=list(default), help=what)
    for name in old:
        parser.add_argument(name, action=_Several, dest="source", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


class _Several(argparse.Action):
    """Sources, each once, with blanks or commas between them."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        texts = [values] if isinstance(values, str) else values
        parts = (part.strip() for text in texts for part in text.split(","))
        setattr(namespace, self.dest, list(dict.fromkeys(map(as_source, filter(None, parts)))))


def as_source(text: str) -> str:
    """What is named by an option: a path as well as file:PATH, also one that leads nowhere, which its reader says."""
    is_path = any(suffix in text for suffix in SUFFIXES) or len(Path(text).parts) > 1
    return f"file:{text}" if is_path and (Path(text).is_file() or not is_source(text)) else text


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """What predicts, from which seed, and where."""
    add_source(parser, "ghn-orth")
    parser.add_argument("--seed", type=whole(0), help="of all that is random (default: the source's own, else 0)")
    parser.add_argument("--device", help="where to predict (default: CUDA if there is one, else CPU)")
