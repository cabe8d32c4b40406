"""Finished weights on disk, so that they are predicted once: off unless it is asked for.

Each file in `folder()` is complete from the moment it has its name, is never written to again, and is verified when it
is read. So reading needs no lock, and whatever is killed at whatever moment leaves nothing in the way of the next. The
lock only keeps several processes from predicting the same weights at once, and where there is none they do just that.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints.load import home
from ..utils.checks import InputError, shown
from ..utils.files import locked, remove_abandoned, replacing
from ..utils.text import logger
from .files import WeightsError, plain, read, save

if TYPE_CHECKING:
    from torch import Tensor

_logger = logger(__name__)

DEFAULT_SIZE = "10GB"
_PATIENCE = 600.0  # seconds to wait for another process before doing its work as well
_NAME = re.compile(r"[0-9a-f]{64}-[a-z0-9_]+\.safetensors")
_MOST = 2**63  # bytes
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

_unwritable: set[Path | None] = set()  # folders that the user has been warned of


class Entry(NamedTuple):
    """One file of the cache: its path, size in bytes, and when it was last used, in seconds since the epoch."""

    path: Path
    size: int
    used: float


def folder() -> Path:
    """The folder of the cache."""
    return home() / "weights"


def is_on(wanted: bool | None = None) -> bool:
    """Whether to use the cache: as wanted, else as TIMM_GHN_CACHE says (0 or 1), else not.

    Raises:
        ValueError: TIMM_GHN_CACHE is something else.
    """
    text = os.environ.get("TIMM_GHN_CACHE") or "0"
    if wanted is None and text not in ("0", "1"):
        raise InputError(f"TIMM_GHN_CACHE={text}: it must be 0 or 1.")
    return text == "1" if wanted is None else wanted


def size_limit(text: str | None = None) -> int:
    """Bytes that the cache may take.

    Args:
        text: a number with or without a unit, K, M, G or T (powers of 1000), e.g. "10GB". Default: what
            TIMM_GHN_CACHE_SIZE says, else `DEFAULT_SIZE`.

    Raises:
        ValueError: it is no such thing.
    """
    text = text if text is not None else os.environ.get("TIMM_GHN_CACHE_SIZE") or DEFAULT_SIZE
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)B?", text.strip().upper())
    size = float(match[1]) * _UNITS[match[2]] if match else math.inf
    if size > _MOST:
        raise InputError(
            f"{shown(text)} is no size for the cache (TIMM_GHN_CACHE_SIZE): write it as 500MB or {DEFAULT_SIZE}."
        )
    return int(size)


def remember(
    name: str,
    make: "Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]",
    like: "Mapping[str, Tensor] | None" = None,
) -> "tuple[Mapping[str, Tensor], Mapping[str, Any], bool]":
    """Tensors from the cache; else they are made and kept for the next time.

    Args:
        name: of the file: what the tensors depend on, as "KEY-DEVICE".
        make: gives the tensors by name, and plain values to keep with them. It is called where the cache has nothing
            sound, once at the most, and its errors are raised; faults of the cache are not. Without a tensor, nothing
            is kept.
        like: tensors whose names, shapes and dtypes those in the cache must have.

    Returns:
        The tensors, the values, and whether they came from the cache.

    Raises:
        ValueError: TIMM_GHN_CACHE_SIZE cannot be read.
    """
    limit = size_limit()
    try:
        path = folder() / f"{name}.safetensors"
    except OSError as error:
        made = make()
        _say_unkept(None, error)
        return *made, False
    with suppress(OSError, WeightsError):
        return *_read(path, like), True
    with _locked(path):
        try:
            return *_read(path, like), True  # it may have come while we waited
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, WeightsError) as error:
            _logger.warning("Cache: %s. It will be replaced.", error)
        tensors, about = make()
        if tensors:
            _store(path, tensors, about, limit)
    return tensors, about, False


def entries() -> list[Entry]:
    """The files of the cache, the one that was not used for longest first.

    Those are files with one of our own names in our own folder; a link counts as itself.
    """
    found = []
    with suppress(OSError), os.scandir(folder()) as files:
        for file in files:
            if _NAME.fullmatch(file.name) and not file.is_dir(follow_symlinks=False):
                with suppress(OSError):  # gone meanwhile
                    stat = file.stat(follow_symlinks=False)
                    found.append(Entry(Path(file.path), stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def prune(limit: int) -> list[Entry]:
    """Remove what killed processes left behind, and what was not used for longest, until `limit` bytes are enough.

    Returns:
        The removed entries.
    """
    remove_abandoned(folder())
    removed = []
    kept = entries()
    total = sum(e.size for e in kept)
    for entry in kept:
        if total <= limit:
            break
        with suppress(OSError):
            entry.path.unlink()
            removed.append(entry)
            total -= entry.size
    return removed


def clear() -> list[Entry]:
    """Remove all files of the cache, and no others. Returns what was removed."""
    return prune(-1)


def _read(path: Path, like: "Mapping[str, Tensor] | None") -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The content of a file. Raises if it is not sound, or of other tensors than its name says."""
    tensors, about = read(path)
    if about.get("name") != path.stem or (like is not None and _kinds(tensors) != _kinds(like)):
        raise WeightsError(f"{path} holds other tensors than its name says")
    with suppress(OSError):
        os.utime(path)  # used just now
    return tensors, about


def _kinds(tensors: "Mapping[str, Tensor]") -> dict[str, Any]:
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}


def _store(path: Path, parts: "Mapping[str, Tensor]", about: Mapping[str, Any], limit: int) -> None:
    """Write a file, if that is possible; a warning, once, if it is not."""
    size = sum(t.nbytes for t in parts.values())
    if size > limit:
        _logger.info("Cache: %d bytes are more than its limit of %d, so they are not kept.", size, limit)
        return
    try:
        prune(limit - size)
        if path.is_symlink():  # nobody's output, so not to be followed
            path.unlink()
        with replacing(path) as temporary:
            save(temporary, plain(parts), {"name": path.stem, **about})
    except Exception as error:  # a full disk, a dtype that the format does not know: the weights are there all the same
        _say_unkept(path.parent, error)


def _say_unkept(place: Path | None, error: Exception) -> None:
    level = logging.DEBUG if place in _unwritable else logging.WARNING
    _unwritable.add(place)
    where = place or "any folder"
    _logger.log(level, "Cache: the model is initialised, but its weights cannot be kept in %s: %s", where, error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process (or thread) at a time, wherever there are locks."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name[:2]}.lock")  # few, because none can ever be removed safely
            stack.enter_context(locked(lock, "predicts the same weights", _PATIENCE))
        except (OSError, NotImplementedError) as error:  # read-only, no locks on this file system, or no patience left
            _logger.info("Cache: going on without a lock: %s", error)
        yield
