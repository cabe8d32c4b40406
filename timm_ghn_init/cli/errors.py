"""How a command ends: a mistake, or a fault of disk, memory or network, is one line on stderr and an exit status."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ..utils.text import Told, logger
from .messages import PROG, one_line
from .results import write_out

_logger = logger(__name__)

FAILED = 2  # a mistake, or a fault of disk, memory or network

_BUG = (
    f"This is a bug in {PROG}, not a mistake of yours. Please report it with the text below and the output of "
    f"`{PROG} doctor`."
)


def exit_status(work: Callable[[], int], resume_hint: Callable[[], str]) -> int:
    """Run a command; print one line on stderr if it is interrupted or fails.

    Args:
        work: runs the command and returns its exit status.
        resume_hint: returns how to continue after an interrupt; "" if there is nothing to continue.

    Returns:
        The status of `work`; 2 after a mistake or a fault of disk, memory or network; 128 + n after signal n.

    Raises:
        SystemExit: by argparse.
        Exception: a bug. A line on stderr asks for a report, and Python prints its traceback.
    """
    try:
        with _signals_interrupt():
            try:
                return work()
            finally:
                write_out()  # also what libraries have printed
    except KeyboardInterrupt as interrupt:
        number = signal.Signals(interrupt.args[0] if interrupt.args else signal.SIGINT)
        stopped = "stopped" if number == signal.SIGINT else f"stopped by {number.name}"
        return _end("; ".join(filter(None, (stopped, resume_hint()))), 128 + number)
    except Exception as error:
        message = _message(error)
        if message is None:
            print(_BUG, file=sys.stderr)
            raise
        _logger.debug("Traceback:", exc_info=True)
        return _end(f"error: {message}", FAILED)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that temporary files are removed. Ignored ones stay so."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    before: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread
        for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(error: Exception) -> str | None:
    """The line to print for an error; None for a bug."""
    if isinstance(error, Told):
        return str(error)
    if _is_out_of_memory(error):
        return f"there is not enough memory: {str(error).strip() or type(error).__name__}"
    if isinstance(error, ImportError) and not (error.name or "").startswith(__package__.partition(".")[0]):
        return f"{one_line(error)}: the installation is broken; `{PROG} doctor` shows which package."
    if isinstance(error, OSError):
        files = " -> ".join(os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, (str, bytes)))
        return f"{files}: {error.strerror}" if files and error.strerror else str(error) or type(error).__name__
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has no exception type for memory on the CPU, or for sizes that overflow."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _end(text: str, status: int) -> int:
    print(f"{PROG}: {one_line(text)}", file=sys.stderr)
    return status
