"""What a command says: mistakes in one line, tables, log messages."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..utils.progress import aside
from ..utils.text import Told, clean

PROG = "timm-ghn-init"


class UserError(Told):
    """A mistake of the user; the message says what to do instead."""


def one_line(text: object) -> str:
    """Names come from models and files: no line breaks, and nothing that steers a terminal."""
    return clean(" ".join(str(text).split()))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text."""
    lines = [header, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@contextmanager
def mistakes(*types: type[Exception]) -> Iterator[None]:
    """Errors that are the user's doing here."""
    try:
        yield
    except types as error:
        raise UserError(str(error)) from error


class _Formatter(logging.Formatter):
    """As timm's: information as it is, all else with its level. Nothing steers a terminal, in tracebacks either."""

    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(map(clean, super().format(record).split("\n")))
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # not for Python's own
    """Above the bars, if there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        with aside():
            super().emit(record)


@contextmanager
def logging_to_stderr(verbosity: int) -> Iterator[None]:
    """Our messages on stderr; with -v timm's as well, and warnings of other libraries."""
    levels = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    handler = _Handler()
    handler.setFormatter(_Formatter())
    saved = []
    logging.captureWarnings(True)
    for name, offset in (("timm_ghn_init", 2), ("timm", 1), ("py.warnings", 0)):
        logger = logging.getLogger(name)
        saved.append((logger, logger.level))
        logger.setLevel(levels[min(max(verbosity + offset, 0), 3)])
        logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, level in saved:
            logger.removeHandler(handler)
            logger.setLevel(level)
