"""Bring a released checkpoint here: over HTTP, or from the Hugging Face Hub."""

import base64
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, getproxies, urlopen

from ..utils.progress import Progress
from ..utils.text import Told, as_cause, clean, clean_logs_of

TIMEOUT = 5.0  # seconds, to connect and for every read
SLOWEST = 1000.0  # bytes a second, on an average over
WINDOW = 30.0  # seconds
_CHUNK = 2**18


class DownloadError(Told, RuntimeError):
    """The file did not come, or not whole. The message is one line without anybody's password."""


def download(url: str, path: Path, progress: bool | None = None) -> None:
    """Write what is at `url` to a file.

    Own code because `torch.hub.download_url_to_file` has no time-out: it waits for ever for a server that does not
    answer.

    A user and a password in the address go to that server only. The file may be incomplete when this raises.

    Raises:
        DownloadError: no connection, an HTTP error, an incomplete file, nothing for 5 seconds, or less than 1000 bytes
            a second over 30 seconds.
        OSError: the file cannot be written.
    """
    with _errors_name(url):
        response = urlopen(_request(url), timeout=TIMEOUT)
    with response, open(path, "wb") as file:
        if response.status not in (200, None):  # None: no HTTP
            raise DownloadError(f"{url} answered {response.status} {clean(response.reason, 200)}, without a file")
        length = response.headers.get("Content-Length") or ""
        total, name = int(length) if length.isdecimal() else None, url.rsplit("/", 1)[-1]
        with Progress(name, total, show=progress, unit="B", delay=0, stays=True, sizes=True) as shown:
            for chunk in _chunks(url, response):
                file.write(chunk)
                shown.step(len(chunk))
        if shown.done != (total or shown.done) or not shown.done:
            raise DownloadError(f"{url} could not be downloaded (the connection ended after {shown.done} bytes)")


def download_from_hub(repo: str, file: str) -> Path:
    """The path of a file of a Hub repository, in huggingface_hub's own cache.

    Raises:
        DownloadError: it is neither there nor can the Hub be reached.
    """
    from huggingface_hub import hf_hub_download

    clean_logs_of("huggingface_hub")
    unreachable = hub_unreachable()
    try:
        return Path(hf_hub_download(repo, file, local_files_only=bool(unreachable)))
    except Exception as error:  # its errors have no common base
        cause = unreachable or f"{type(error).__name__}: {error}".split("\n")[0]
        raise DownloadError(
            f"{file} cannot be downloaded from the Hugging Face Hub repository {repo} ({cause})"
        ) from as_cause(error)


def hub_unreachable() -> str:
    """Why the Hub cannot be reached; "" if it may be. huggingface_hub itself tries again for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if getproxies():  # which know names that this machine does not
        return ""
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"no network: {host} is not found"
    return ""


def _request(url: str) -> Request:
    """A user and a password are taken out of the address. They do not go to servers that a redirect names."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=place)), headers={"User-Agent": "timm_ghn_init"})
    if at:
        basic = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    """The bytes of a response, as long as they arrive fast enough."""
    marked, received = time.monotonic(), 0
    with _errors_name(url):  # not those of whoever takes the chunks
        while chunk := response.read1(_CHUNK):
            yield chunk
            received += len(chunk)
            if (seconds := time.monotonic() - marked) >= WINDOW:
                if received < SLOWEST * seconds:
                    raise TimeoutError(f"too slow: {received / seconds:.0f} bytes a second, less than {SLOWEST:.0f}")
                marked, received = time.monotonic(), 0


@contextmanager
def _errors_name(url: str) -> Iterator[None]:
    """Errors of the network become a DownloadError that names the address."""
    try:
        yield
    except HTTPError as error:
        raise DownloadError(f"{url} answered {error.code} {clean(error.reason, 200)}") from None
    except InvalidURL:  # its text may be a part of a password
        raise DownloadError(f"{url} is no address: in a user and a password, / is written %2F and @ is %40") from None
    except (OSError, HTTPException, ValueError) as error:
        cause = f"{type(error).__name__}: {clean(error, 200)}"
        raise DownloadError(f"{url} could not be downloaded ({cause})") from None
