"""Text from outside, made fit to be shown.

File names, metadata, what servers and libraries say: all of it may hold characters that steer a terminal or forge a
line of a log, passwords and tokens. Errors and log messages show it through `clean`; the loggers of this package, which
`logger` makes, do so by themselves, and `clean_logs_of` has those of a library do it.
"""

import difflib
import logging
import os
import re
from collections.abc import Iterable

# A proxy or mirror may be named with a user and a password.
_IN_ADDRESSES = re.compile(r"(?<=://)\S*@")  # some forget to write / as %2F
_TOKEN = re.compile(r"\bhf_\w{8,}")


def clean(value: object, most: int | None = None) -> str:
    """Something as one line of characters that can be printed, without the passwords of addresses and Hub tokens.

    Args:
        value: anything; what is shown is its `str`.
        most: cut to so many characters.
    """
    text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in str(value))
    text = _TOKEN.sub("hf_***", _IN_ADDRESSES.sub("***@", text))
    return text if most is None or len(text) <= most else f"{text[:most]}..."


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A sentence, after a space, with up to three words that are close to one; "" if there are none."""
    close = difflib.get_close_matches(word, list(words), n=3)
    return f" Did you mean {' or '.join(map(clean, close))}?" if close else ""


class Told(Exception):
    """An error that is meant for people: its message, which is cleaned, says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


def as_cause(error: BaseException) -> BaseException | None:
    """An error to raise another one from; None if a traceback would show text of it that is not fit to be shown."""
    link: BaseException | None = error
    while link is not None:
        if any(line != clean(line) for line in str(link).split("\n")):
            return None
        link = link.__cause__ or link.__context__
    return error


def logger(name: str) -> logging.Logger:
    """The logger of a module; text, paths and errors among the arguments of its messages are cleaned."""
    result = logging.getLogger(name)
    if _clean_arguments not in result.filters:
        result.addFilter(_clean_arguments)
    return result


def clean_logs_of(package: str) -> None:
    """Have the loggers of a library, once it is imported, say nothing that `clean` would not show."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == package:
            logging.getLogger(name).addFilter(_clean_message)  # which changes nothing the second time


def _clean_message(record: logging.LogRecord) -> bool:
    record.msg, record.args = clean(record.getMessage()), ()
    return True


def _clean_arguments(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        outside = (str, os.PathLike, BaseException)
        record.args = tuple(clean(a) if isinstance(a, outside) else a for a in record.args)
    return True
