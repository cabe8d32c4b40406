"""Files and folders that are written whole or not at all, whoever stops the process, and whenever; and locks.

An unfinished file is in a new folder next to its target, whose name nobody can guess and which nobody else may enter,
so no link waits in it. When all is written, and on the disk, it is renamed to the target's name.

The writer holds a lock on that folder, which the system takes from a process that dies. So the next writer can tell
what a killed process has left behind from what is being written, and removes it. On a file system without locks, it
stays.
"""

import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .text import logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_logger = logger(__name__)

QUIET = 2.0  # seconds that a process waits for a lock before it says which
_PREFIX = ".timm-ghn-init-"
_FOLDER = re.compile(re.escape(_PREFIX) + r"\w+\.tmp")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def locked(path: Path, holder: str, patience: float = -1) -> Iterator[None]:
    """Hold a lock, alone of all processes and threads. Who has to wait for it is told which file it is.

    Args:
        path: the lock's file, made if need be.
        holder: what a process that holds it does, for the message, e.g. "fetches ghn2".
        patience: seconds to wait; -1 is for ever.

    Raises:
        TimeoutError: somebody else has held it all the time.
        OSError, NotImplementedError: the file cannot be written, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=QUIET)
    except Timeout:
        _logger.warning("Waiting for another process, which %s and holds %s.", holder, path)
        lock.acquire(timeout=patience)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file at, which replaces `path` at the end. A link stays, and what it points to is replaced.

    Raises:
        OSError: it cannot be written, the disk is full for instance; then all is as it was. It names `path`.
    """
    target = Path(os.path.realpath(path))
    with named(path), own_folder(target.parent) as own:
        yield own / target.name
        _to_disk(own / target.name)
        os.replace(own / target.name, target)


def replace_by_torch(path: Path, values: Any) -> None:
    """`torch.save` values at `path`, whole or not at all.

    Raises:
        OSError: as `replacing`; `torch.save` to a file raises a RuntimeError where the disk is full.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(values, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, whose files replace those of the same names in the folder `path`; other files stay.

    A folder that is not there yet appears in one step. In an older one the old files are removed before the first new
    one appears, so that files of two models never meet.

    Raises:
        OSError: as `replacing`.
    """
    target = Path(os.path.realpath(path))
    with named(path), own_folder(target if target.is_dir() else target.parent) as own:
        new = own / "new"
        new.mkdir()
        yield new
        names = sorted(os.listdir(new))
        for name in names:
            _to_disk(new / name)
        try:
            os.rename(new, target)
        except OSError:
            if not target.is_dir():
                raise
            _put_files(new, target, names)


def _put_files(new: Path, target: Path, names: list[str]) -> None:
    with _lock(target):  # others may put theirs there as well
        for name in names:
            (target / name).unlink(missing_ok=True)
        for name in names:
            os.rename(new / name, target / name)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, made if need be. It is on the disk when this returns; nothing is added if it raises.

    Args:
        path: of a file that nobody else writes to at the moment.
        line: without its end. It begins a new line also where the last one was cut off when a machine went down.
    """
    is_new = not path.exists()
    with named(path), open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        rest = (b"" if file.read(1) in (b"", b"\n") else b"\n") + line + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            if is_new and not end:
                path.unlink()
            raise


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` that only this process uses; it and all in it go at the end.

    Remains of killed processes in `folder` are removed first.
    """
    remove_abandoned(folder)
    with ExitStack() as stack:
        own = None
        while own is None or not own.is_dir():  # another process found it before it was locked, and removed it
            own = Path(tempfile.mkdtemp(".tmp", _PREFIX, folder))
            stack.enter_context(_lock(own))
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        yield own


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left in a folder. Nothing that goes wrong is an error."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with _lock(Path(entry.path), wait=False) as nobody_uses_it:
                    if nobody_uses_it:
                        shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a folder for this process, and say whether that was possible: there may be no locks, or another has it."""
    with ExitStack() as stack:
        is_held = False
        with suppress(OSError):
            if fcntl is not None:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                is_held = True
        yield is_held


def _to_disk(path: Path) -> None:
    """So that a file that has its name is whole also when the machine goes down."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have errors of the disk name the file that was asked for, not one under a temporary name, or none."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK or _PREFIX in str(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
