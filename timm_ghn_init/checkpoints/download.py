"""Download one file over HTTP, and go on where an interrupted download stopped."""

import hashlib
import logging
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds, to connect and for every read
_CHUNK = 2**18
_ATTEMPTS = 20


class DownloadError(RuntimeError):
    """The file did not come, or not whole."""


def download(url: str, path: Path, progress: bool | None = None) -> None:
    """Bring `path` up to the whole file at `url`; what is there already is taken for its beginning.

    A connection that breaks is opened again as long as each attempt brings something.

    Args:
        url: http or https.
        path: where to write. It stays behind, incomplete, when this raises, for a later call to go on with.
        progress: show a progress bar; None shows one where stderr is a terminal.

    Raises:
        DownloadError: no connection, an HTTP error, or an incomplete file.
        OSError: `path` cannot be written.
    """
    path.touch()  # whether it can be written is no question of the network
    try:
        _receive_all(url, path, progress)
    finally:
        if path.stat().st_size == 0:
            path.unlink()


def _receive_all(url: str, path: Path, progress: bool | None) -> None:
    cause = ""
    for _ in range(_ATTEMPTS):
        before = path.stat().st_size
        try:
            if _receive(url, path, progress):
                return
            cause = "the connection ended early"
        except HTTPError as error:
            if error.code != 416:
                raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
            path.write_bytes(b"")  # there is nothing past what we have: not the same file
            continue
        except (OSError, HTTPException, ValueError) as error:
            cause = f"{type(error).__name__}: {error}"
        if path.stat().st_size <= before:
            raise DownloadError(f"{url} could not be downloaded ({cause})")
        _logger.info("Downloading %s: %s after %d bytes, trying again", url, cause, path.stat().st_size)
    raise DownloadError(f"{url} could not be downloaded in {_ATTEMPTS} attempts ({cause})")


def _receive(url: str, path: Path, progress: bool | None) -> bool:
    """One request, for what is missing. Whether the file is whole afterwards, as far as the server says."""
    from tqdm import tqdm

    have = path.stat().st_size
    headers = {"User-Agent": "timm_ghn_init", **({"Range": f"bytes={have}-"} if have else {})}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if have and not _continues(response, have):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar: Any = tqdm(
            desc=url.rsplit("/", 1)[-1],
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=None if progress is None else not progress,
        )
        with bar, open(path, "ab" if have else "wb") as f:
            while chunk := response.read1(_CHUNK):  # what has come, rather than wait for more and lose it
                f.write(chunk)
                bar.update(len(chunk))
    return total is None or path.stat().st_size == total


def _continues(response: Any, have: int) -> bool:
    """Whether the server sends just what is missing, instead of everything."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def git_blob_id(path: Path) -> str:
    """The id under which git keeps a file of these bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return _feed(digest, path)


def sha256(path: Path) -> str:
    """The file's sha256, in hex."""
    return _feed(hashlib.sha256(), path)


def _feed(digest: Any, path: Path) -> str:
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
