"""Files and folders that are written whole or not at all, whoever stops the process, and whenever.

What is being written lies in a folder of its own beside its target. Nobody can guess the folder's name and nobody else
may enter it, so no link waits in it. When all is written, and on the disk, one step gives it the target's name.

The writer holds a lock on that folder, which the system takes from a process that dies. So what a killed process has
left behind can be told from what is being written, also where processes of two containers have the same number, and the
next that writes there removes it. Where there are no such locks, or the folder was made on another machine, it is
removed when it is a day old.
"""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ABANDONED = 86_400.0  # seconds after which what cannot be told to be in use is not
_PREFIX = ".timm-ghn-init-"
_FOLDER = re.compile(re.escape(_PREFIX) + r"(?P<machine>[0-9a-f]{8})-\w+\.tmp")
_PART = re.compile(re.escape(_PREFIX) + r"\w+-\w+\.part")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file at, which is given the name `path` at the end, in place of what has it.

    Raises:
        OSError: it cannot be written, the disk is full for instance; then all is as it was. It names `path`.
    """
    with named(path), own_folder(path.parent) as own:
        yield own / path.name
        _to_disk(own / path.name)
        os.replace(own / path.name, path)


def replace_by_torch(path: Path, values: Any) -> None:
    """`torch.save` values at `path`, whole or not at all.

    Raises:
        OSError: as `replacing`; torch itself says RuntimeError where a disk is full.
    """
    import torch

    with replacing(path) as temporary, open(temporary, "wb") as file:
        noted = _Noted(file)
        try:
            torch.save(values, noted)  # type: ignore[arg-type]
        except RuntimeError:
            if noted.error is not None:
                raise noted.error from None
            raise


class _Noted:
    """A file that remembers what went wrong."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.flush = file.flush

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which is given the name `path` at the end. Its files take the place of all files there
    that have the same names, in one step; other files stay.

    Where the system cannot swap two folders (some network file systems), or `path` cannot be swapped (it is the working
    directory, a mount point, or has folders in it), the old files are removed before the new ones are put there.

    Raises:
        OSError: as `replacing`.
    """
    target = path.resolve()
    movable = not target.is_dir() or (os.access(target.parent, os.W_OK) and not _is_working_directory(target))
    remove_abandoned(target)
    with named(path), own_folder(target.parent if movable else target) as own:
        new = own / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            _to_disk(file)
        if not (movable and _put_folder(new, target)):
            _put_files(new, target)


def _is_working_directory(path: Path) -> bool:
    try:
        return path.samefile(os.curdir)
    except OSError:  # it was removed
        return False


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

    What killed processes have left in `folder` goes first.
    """
    remove_abandoned(folder)
    own, lock = _new_folder(folder)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def resumable(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A file to read and write, open, with what was written to it under the same name before.

    It is one of this user's that nothing else links to, or a new one. It goes at the end, unless the block raises
    something and the file is not empty. What is in it has to be verified.

    Args:
        folder: where it is. Only one process at a time should ask for the same name in it.
        name: letters and digits.
    """
    prefix = f"{_PREFIX}{name}-"
    remove_abandoned(folder, but=prefix)
    descriptor, path = _found_part(folder, prefix) or tempfile.mkstemp(".part", prefix, folder)
    done = False
    try:
        with open(descriptor, "r+b", buffering=0) as file:
            yield Path(path), file  # type: ignore[misc]
        done = True
    finally:
        if done or not os.path.getsize(path):
            os.unlink(path)


def remove_abandoned(folder: Path, but: str = "\0") -> list[tuple[Path, int]]:
    """Remove what killed processes have left in a folder, except for names with a certain beginning.

    Returns:
        What was removed, and the bytes it took. Nothing that goes wrong is an error.
    """
    removed = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(_PREFIX) or entry.name.startswith(but):
                continue
            with suppress(OSError):  # gone meanwhile, or not ours
                size = sum(file.lstat().st_size for file in (Path(entry.path), *Path(entry.path).rglob("*")))
                if (match := _FOLDER.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False):
                    gone = _remove_folder(entry.path, match["machine"] == _machine())
                else:
                    gone = _PART.fullmatch(entry.name) is not None and _remove_part(entry.path)
                removed += [(Path(entry.path), size)] if gone else []
    return removed


def _remove_folder(path: str, of_this_machine: bool) -> bool:
    """Remove a folder unless somebody is at work in it, as far as can be told."""
    lock = _lock(path)
    try:
        if not (lock is not None and of_this_machine):  # other machines may know nothing of each other's locks
            newest = max(os.lstat(p).st_mtime for p in (path, *(os.path.join(path, n) for n in os.listdir(path))))
            if time.time() - newest < _ABANDONED:
                return False
        shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        if lock is not None:
            os.close(lock)


def _remove_part(path: str) -> bool:
    old = time.time() - os.lstat(path).st_mtime > _ABANDONED
    if old:
        os.unlink(path)
    return old


def _new_folder(folder: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that locks it."""
    while True:
        path = tempfile.mkdtemp(".tmp", f"{_PREFIX}{_machine()}-", folder)
        try:
            lock = _lock(path)
        except OSError:  # somebody who came by found it without a lock, and is removing it
            continue
        if lock is None or _is_at(lock, path):
            return Path(path), lock
        os.close(lock)


def _lock(path: str) -> int | None:
    """Lock a folder for this process; the descriptor that holds the lock, None where there are no locks.

    Raises:
        OSError: somebody else holds it, or there is no such folder.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


@lru_cache
def _machine() -> str:
    """Something by which processes of one running system know each other, whatever their containers are called."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = str(uuid.getnode())
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _found_part(folder: Path, prefix: str) -> tuple[int, str] | None:
    """A file to go on with: descriptor and path. No link, device or file of another user is taken for one."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    for name in sorted(os.listdir(folder)):
        if not (name.startswith(prefix) and _PART.fullmatch(name)):
            continue
        with suppress(OSError):
            descriptor = os.open(folder / name, flags)
            found = os.fstat(descriptor)
            if S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == getattr(os, "geteuid", lambda: 0)():
                return descriptor, str(folder / name)
            os.close(descriptor)
    return None


def _to_disk(path: Path) -> None:
    """So that a file that has its name is whole also when the machine goes down."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _put_folder(new: Path, target: Path) -> bool:
    """Give a folder its name in one step, with what else is in the one that has it. Whether that was possible."""
    try:
        os.rename(new, target)
        return True
    except OSError:
        if not target.is_dir():  # else something is in it
            raise
    try:
        there, ours = target.stat(), new.stat()
        if (there.st_uid, there.st_gid) != (ours.st_uid, ours.st_gid):
            return False
        new.chmod(there.st_mode & 0o7777)
        for name in set(os.listdir(target)) - set(os.listdir(new)):
            os.link(target / name, new / name, follow_symlinks=False)
        if not _swap(new, target):
            return False
    except (OSError, NotImplementedError):  # a folder in it, or no links here
        return False
    for name in set(os.listdir(new)) - set(os.listdir(target)):  # that came in between
        with suppress(OSError):
            os.rename(new / name, target / name)
    return True


def _put_files(new: Path, target: Path) -> None:
    names = sorted(os.listdir(new))
    for name in names:  # before the first new one is there
        (target / name).unlink(missing_ok=True)
    for name in names:
        os.rename(new / name, target / name)


def _swap(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system cannot."""
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP
    if hasattr(libc, "renameat2"):
        return libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    return False


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have errors of the disk name the file that was asked for, not one under a temporary name, or none."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK or _PREFIX in str(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
