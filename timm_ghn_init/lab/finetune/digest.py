"""Digests of files, computed again only if a file has changed."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ...checkpoints.load import sha256


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns, about.st_ino)


def digest_of_all(paths: Iterable[Path], root: Path) -> str:
    """One sha256 of the names, relative to a folder, and the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    return sha256(path)
