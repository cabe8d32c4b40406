"""Texts of the command line: mistakes, tables, log messages."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..utils.progress import aside
from ..utils.text import Told, clean

PROG = "timm-ghn-init"
REPORTS = "timm_ghn_init.initialize"  # the logger of the reports on initialisations


class UserError(Told):
    """A mistake of the user; the message says what to do instead."""


def one_line(text: object) -> str:
    """A text without line breaks and control characters."""
    return clean(" ".join(str(text).split()))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text; None is a dash, and True is yes."""
    lines = [header, *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(one_line, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else one_line(value)


@contextmanager
def mistakes(*types: type[Exception]) -> Iterator[None]:
    """Inside, errors of these types are mistakes of the user, not bugs."""
    try:
        yield
    except types as error:
        raise UserError(str(error)) from error


class _Formatter(logging.Formatter):
    """Messages of level INFO as they are, others after their level; without control characters, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(map(clean, super().format(record).split("\n")))
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic at run time
    """Prints above the progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        with aside():
            super().emit(record)


@contextmanager
def logging_to_stderr(verbosity: int) -> Iterator[None]:
    """Show log messages on stderr: those of this package; with -v also timm's and the warnings of other libraries."""
    levels = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    handler = _Handler()
    handler.setFormatter(_Formatter())
    reports = logging.getLogger(REPORTS)
    saved = [(reports, reports.level)]
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
