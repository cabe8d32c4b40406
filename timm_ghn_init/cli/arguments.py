"""How commands declare their options, and the options that several of them share, named as in timm's scripts."""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..sources import SUFFIXES, Source, is_source, parse_source
from ..utils.checks import POSITIVE, SEED, Kind, whole
from ..utils.text import did_you_mean
from .messages import PROG, one_line
from .results import write_out

Run = Callable[[argparse.Namespace], int]
Read = Callable[[str], Any]  # the value of an option from its text
Declare = Callable[[Any], object]  # adds an option, or several, to a parser
AGAIN = "run the same command again to continue"


class Command(NamedTuple):
    """A command: its name, function, example of arguments and options, and how to continue after an interrupt."""

    name: str
    run: Run
    example: str
    options: tuple[Declare, ...]
    resume_hint: str


def command(example: str, *options: Declare, name: str = "", resume_hint: str = "") -> Callable[[Run], Command]:
    """Make a function a command. Its docstring is the help; the name is the first word of the example."""
    return lambda run: Command(name or example.split()[0], run, example, options, resume_hint)


class ArgumentParser(argparse.ArgumentParser):
    """A mistake is one line that points to --help and names similar options or commands."""

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

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version, for `write_out`
        if file is sys.stdout:
            write_out(message.rstrip("\n"))
        else:
            super()._print_message(message, file)


# -- kinds of options --------------------------------------------------------------------------------------------------


def opt(
    names: str, text: str, kind: Kind | Callable[[str], Any] = str, default: Any = None, **settings: Any
) -> Declare:
    """An option or argument; its help ends with the default, or says that it is required.

    Args:
        names: "-o --output", or "arch" for an argument without a name.
        text: the help. It names the default itself if that is None.
        kind: of the value, or a function that reads it.
        default: if the option is not given.
        settings: others of `add_argument`.
    """
    if settings.get("required"):
        text += " (required)"
    elif "action" not in settings and default not in (None, (), [], argparse.SUPPRESS):
        text += f" (default: {' '.join(default) if isinstance(default, list) else default})"
    if "action" not in settings:
        settings["type"] = _reader(kind) if isinstance(kind, Kind) else kind
    return lambda parser: parser.add_argument(*names.split(), help=text, default=default, **settings)


def _reader(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def output(metavar: str, text: str) -> Declare:
    """The path of what the command writes."""
    return opt("-o --output", text, required=True, metavar=metavar)


def flag(names: str, text: str, **settings: Any) -> Declare:
    """An option without a value."""
    return opt(names, text, **{"default": False, "action": "store_true", **settings})


def group(title: str, *options: Declare) -> Declare:
    """Options below a title in the help."""
    return lambda parser: _declare(parser.add_argument_group(title), options)


def either(*options: Declare, required: bool = False) -> Declare:
    """Options that exclude each other."""
    return lambda parser: _declare(parser.add_mutually_exclusive_group(required=required), options)


def _declare(parser: Any, options: Sequence[Declare]) -> None:
    for declare in options:
        declare(parser)


def seconds(text: str) -> float:
    """A time: "90m", "1.5h", "20s" or a number of seconds."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m, 1.5h or 600")
    return _reader(POSITIVE)(str(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]))


def key_value(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is a Python literal if it can be read as one, else text."""
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


def as_source(text: str) -> str:
    """A source; a path stands for file:PATH, also if there is no such file, which its reader reports."""
    is_path = any(suffix in text for suffix in SUFFIXES) or len(Path(text).parts) > 1
    return f"file:{text}" if is_path and (Path(text).is_file() or not is_source(text)) else text


# -- options of several commands ---------------------------------------------------------------------------------------

INITS = ("rand", "orth", "ghn", "ghn-orth")  # that comparisons show by default
ARCH = opt("arch", "a timm architecture", metavar="ARCH")
MODEL_OPTIONS = (  # arguments of `timm.create_model`
    opt("--num-classes", "classes of the last layer (default: the architecture's)", whole(0), metavar="N"),
    opt("--in-chans", "input channels (default: the architecture's)", whole(1), metavar="C"),
    opt("--img-size", "input height and width, pixels (default: the architecture's)", whole(1), metavar="H"),
    opt("--model-kwargs", "more for timm.create_model (default: none)", key_value, (), nargs="*", metavar="KEY=VALUE"),
)
ARCHITECTURE = (ARCH, *MODEL_OPTIONS)
RANDOM = opt("--seed", "seed of everything random", SEED, 0)
PATTERNS = (
    opt("--only", "initialise only these, by name, e.g. 'blocks.*' (default: all)", nargs="+", metavar="PATTERN"),
    opt("--skip", "leave these, by name (default: none)", nargs="+", metavar="PATTERN"),
)


def image_options(first: str, default: str = "") -> tuple[Declare, Declare]:
    """Images by name or folder.

    Args:
        first: the default, also if only this command has it ("noise").
        default: says how the command chooses images if none are named; then the option's default is None.
    """
    names = ", ".join(dict.fromkeys((first, "digits", "cifar10", "fashion-mnist", "letters")))
    note = f" (default: {default})" if default else ""
    return (
        opt("--data", f"images: {names} or a folder{note}", default=None if default else first),
        opt("--data-dir", "folder of named data sets, for downloads too (default: data)", metavar="DIR"),
    )


def one_source(default: str, what: str = "a source, see `list`") -> Declare:
    """One source."""
    return opt("--source", what, as_source, default)


def needed_source(what: str) -> Declare:
    """One source without a default, with or without the word --source."""
    argument = opt("source", "the same", as_source, argparse.SUPPRESS, nargs="?")
    return either(opt("--source", f"{what} (required)", as_source), argument, required=True)


def sources(default: Sequence[str], what: str) -> Declare:
    """Several sources, or "pretrained" and "timm"."""
    return opt("--source", what, as_source, list(default), nargs="+")


# The source, the seed and the device of a prediction.
PREDICTION = (
    one_source("ghn-orth"),
    opt("--seed", "seed of everything random (default: the source's, else 0)", SEED),
    opt("--device", "where to predict, e.g. cuda:0 (default: CUDA if available, else CPU)"),
    *PATTERNS,
)


def read_source(args: argparse.Namespace) -> Source:
    """The source of a command that has `PATTERNS`, its parts with these patterns."""
    chosen = {name: value for name in ("only", "skip") if (value := getattr(args, name))}
    parts = [replace(part, **chosen) for part in parse_source(args.source).parts]
    return parse_source("+".join(map(str, parts)))
