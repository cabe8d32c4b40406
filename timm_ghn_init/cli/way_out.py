"""The one way out of every command: what a user, his files or his machine cause is a line on stderr and a status."""

import codecs
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import Any

from ..utils.text import Told, logger
from .messages import PROG, one_line

_logger = logger(__name__)

FAILED = 2  # a mistake, or a fault of disk, memory or network
INTERRUPTED = 130  # as of a process that SIGINT has ended; SIGTERM and SIGHUP likewise

_BUG = (
    f"This is a bug of {PROG}, and nothing that you have done wrong. Please report it with all of the above and what "
    f"`{PROG} doctor` prints."
)
_SIGNALS = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def leave(work: Callable[[], int], go_on: Callable[[], str]) -> int:
    """Do the work of a command, and whatever happens, end as documented.

    Args:
        work: returns the exit status.
        go_on: what to do after an interrupt; "" where there is nothing to go on with.

    Returns:
        The exit status: that of the work, `FAILED` or 128 + the number of the signal that stopped it.

    Raises:
        SystemExit: by argparse.
        Exception: a bug, which is left to Python, with a note for whoever sees its traceback.
    """
    with _streams():
        try:
            with _signals():
                try:
                    return work()
                finally:
                    sys.stdout.flush()
        except KeyboardInterrupt:
            return _end(" ".join(filter(None, ("stopped;", go_on()))).rstrip(";"), INTERRUPTED)
        except _Terminated as end:
            return _end(f"stopped by {end.signal.name}", 128 + end.signal)
        except _OutputError as error:
            if error.errno == errno.EPIPE:
                return 0  # its reader, `head` for instance, has seen enough
            return _end(f"error: standard output cannot be written: {error.strerror}", FAILED)
        except Exception as error:
            said = _said(error)
            if said is None:
                _note(error)
                raise
            _logger.debug("Traceback:", exc_info=True)
            return _end(f"error: {said}", FAILED)


def _said(error: Exception) -> str | None:
    """What to say of an error; None of a bug."""
    if isinstance(error, Told):
        return str(error)
    if _is_out_of_memory(error):
        return f"there is not enough memory: {str(error).strip() or type(error).__name__}"
    if isinstance(error, ImportError) and not (error.name or "").startswith(__package__.partition(".")[0]):
        return f"{one_line(error)}: the installation is broken; `{PROG} doctor` says what of it."
    if isinstance(error, OSError):
        files = " -> ".join(os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, (str, bytes)))
        return f"{files}: {error.strerror}" if files and error.strerror else str(error) or type(error).__name__
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether something is too large for this machine, or for any; PyTorch has no type for that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _end(text: str, status: int) -> int:
    print(f"{PROG}: {one_line(text)}", file=sys.stderr)
    return status


def _note(error: Exception) -> None:
    if hasattr(error, "add_note"):
        error.add_note(_BUG)
    else:  # before Python 3.11
        print(_BUG, file=sys.stderr)


# Standard streams


class _OutputError(OSError):
    """What is to be printed cannot be written."""


class _Output:
    """stdout, with errors that can be told from those of other files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):  # or the interpreter tries again at the end, and complains
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise _OutputError(error.errno, error.strerror) from error


@contextmanager
def _streams() -> Iterator[None]:
    """Streams that take any text; where one is closed, nothing else gets its number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it stays, as that of the process)
    stdout, errors = sys.stdout, getattr(sys.stdout, "errors", None)
    reconfigure = getattr(stdout, "reconfigure", lambda **_: None)
    reconfigure(errors=_ANY_TEXT)
    try:
        with redirect_stdout(_Output(stdout)):  # type: ignore[type-var]  # as much of one as it takes
            yield
    finally:
        with suppress(OSError):  # it writes first what is left
            reconfigure(errors=errors)


_ANY_TEXT = f"{__name__}.any"
_PLAIN = {"\N{PLUS-MINUS SIGN}": "+-", "\N{MULTIPLICATION SIGN}": "x"}


def _encode_any(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of file names that are no text as they are, all else that a terminal does not know in plain letters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    def encode(c: str) -> bytes:
        with suppress(UnicodeEncodeError):
            return c.encode("ascii", "surrogateescape")
        return _PLAIN.get(c, c).encode("ascii", "backslashreplace")

    return b"".join(map(encode, error.object[error.start : error.end])), error.end


codecs.register_error(_ANY_TEXT, _encode_any)


# Signals


class _Terminated(BaseException):
    """The process was asked to end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


@contextmanager
def _signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end a command as Ctrl-C does, so that it leaves nothing half-written behind."""
    process, before = os.getpid(), {}

    def stop(number: int, frame: FrameType | None) -> Any:
        if os.getpid() != process:  # a worker, which has nothing to clear up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise _Terminated(number)

    with suppress(ValueError):  # not in the main thread
        before = {s: signal.signal(s, stop) for s in _SIGNALS if signal.getsignal(s) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
