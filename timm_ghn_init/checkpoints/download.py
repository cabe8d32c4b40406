"""Download one file over HTTP, within bounds, and go on where an interrupted download stopped."""

import base64
import io
import time
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    AbstractHTTPHandler,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from ..utils.progress import Progress
from ..utils.text import Told, clean, logger

_logger = logger(__name__)

TIMEOUT = 5.0  # seconds, to connect and for every read
SLOWEST = 1000.0  # bytes a second, on an average over
WINDOW = 30.0  # seconds
LONGEST = 3600.0  # seconds for the whole file
LARGEST = 2**31  # bytes; what is larger comes through huggingface_hub
_CHUNK = 2**18
_ATTEMPTS = 20


class DownloadError(Told, RuntimeError):
    """The file did not come, or not whole. The message is one line without anybody's password."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message, 1000))


class _TooSlow(Exception):
    """Less than `SLOWEST`, or longer than `LONGEST`."""


class _NotWritten(Exception):
    """The cause is an OSError of the disk, not of the network."""


def download(url: str, file: BinaryIO, progress: bool | None = None) -> None:
    """Bring a file up to the whole of what is at `url`; what is in it already is taken for its beginning.

    A connection that breaks is opened again as long as each attempt brings something. Given up is what brings nothing
    for 5 seconds, less than 1000 bytes a second over 30 seconds, or is not whole after an hour.

    Args:
        url: http or https, perhaps with a user and a password, which go to that server only.
        file: open to read and write, without a buffer. It may be incomplete when this raises, for a later call to go
            on with.
        progress: show a progress bar; None shows one where stderr is a terminal.

    Raises:
        DownloadError: no connection, an HTTP error, an empty answer, an incomplete file, or too slow.
        OSError: the file cannot be written.
    """
    try:
        _receive_all(url, file, progress)
    except _NotWritten as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None
    if not _size(file):
        raise DownloadError(f"{url} is empty: the answer had 0 bytes")


def _receive_all(url: str, file: BinaryIO, progress: bool | None) -> None:
    pace, cause = _Pace(), ""
    for _ in range(_ATTEMPTS):
        before = _size(file)
        try:
            if _receive(url, file, progress, pace):
                return
            cause = "the connection ended early"
        except HTTPError as error:
            if error.code != 416:
                raise DownloadError(f"{url} answered {error.code} {clean(error.reason, 200)}") from None
            file.truncate(0)  # there is nothing past what we have: not the same file
            continue
        except _TooSlow as error:
            raise DownloadError(f"{url} could not be downloaded ({error})") from None
        except InvalidURL:  # its text may be a part of a password
            raise DownloadError(
                f"{url} is no address: in a user and a password, / is written %2F and @ is %40"
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            cause = f"{type(error).__name__}: {clean(error, 200)}"
        if _size(file) <= before:
            raise DownloadError(f"{url} could not be downloaded ({cause})")
        _logger.info("Downloading %s: %s after %d bytes, trying again", url, cause, _size(file))
    raise DownloadError(f"{url} could not be downloaded in {_ATTEMPTS} attempts ({cause})")


def _receive(url: str, file: BinaryIO, progress: bool | None, pace: "_Pace") -> bool:
    """One request, for what is missing. Whether the file is whole afterwards, as far as the server says."""
    have = _size(file)
    with _opener(pace).open(_request(url, have), timeout=TIMEOUT) as response:
        if response.status not in (200, 206, None):  # None: no HTTP
            raise DownloadError(f"{url} answered {response.status} {clean(response.reason, 200)}, without a file")
        if have and not _continues(response, have):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if (total or 0) > LARGEST:
            raise DownloadError(f"{url} sends more than {LARGEST >> 30} GiB")
        name = url.rsplit("/", 1)[-1]
        with Progress(name, total, show=progress, done=have, unit="B", delay=0, stays=True, sizes=True) as shown:
            file.truncate(have)
            file.seek(have)
            while chunk := response.read1(_CHUNK):  # what has come, rather than wait for more and lose it
                if file.tell() + len(chunk) > LARGEST:
                    raise DownloadError(f"{url} sends more than {LARGEST >> 30} GiB")
                _write(file, chunk)
                shown.step(len(chunk))
    return total is None or _size(file) == total


def _request(url: str, have: int) -> Request:
    """For the file from a position on; a user and a password are taken out of the address."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=place)), headers={"User-Agent": "timm_ghn_init"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if at:
        basic = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _continues(response: Any, have: int) -> bool:
    """Whether the server sends just what is missing, instead of everything."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise _NotWritten from error


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


# Bounds of speed and time. They hold for all that a server sends, headers included, so they stand below the library.


class _Pace:
    """How fast a download has been, over all of its connections."""

    def __init__(self) -> None:
        self.begun = self.marked = time.monotonic()
        self.received = 0  # since the mark

    def check(self) -> None:
        now = time.monotonic()
        if now - self.begun > LONGEST:
            raise _TooSlow(f"not whole after {LONGEST:.0f} seconds")
        if now - self.marked >= WINDOW:
            speed = self.received / (now - self.marked)
            if speed < SLOWEST:
                raise _TooSlow(f"too slow: {speed:.0f} bytes a second, less than {SLOWEST:.0f}")
            self.marked, self.received = now, 0


class _Watched(io.RawIOBase):
    """What comes from a socket, as long as it comes fast enough."""

    def __init__(self, socket: Any, pace: _Pace) -> None:
        self.socket, self.pace = socket, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.pace.check()
        count = self.socket.readinto(buffer)
        self.pace.received += count or 0
        return count

    def close(self) -> None:
        self.socket.close()
        super().close()


class _Watching(AbstractHTTPHandler):
    """urllib's handler, whose responses are read through `_Watched`."""

    pace: _Pace

    def do_open(self, http_class: Any, req: Request, **http_conn_args: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> HTTPResponse:
            response = HTTPResponse(*args, **kwargs)
            response.fp = io.BufferedReader(_Watched(response.fp.detach(), self.pace))  # type: ignore[attr-defined]
            return response

        def connect(host: str, **kwargs: Any) -> Any:
            connection = http_class(host, **kwargs)
            connection.response_class = watched
            return connection

        return super().do_open(connect, req, **http_conn_args)  # type: ignore[arg-type]


class _WatchingHTTP(_Watching, HTTPHandler):
    """Without TLS."""


class _WatchingHTTPS(_Watching, HTTPSHandler):
    """With it."""


class _Redirecting(HTTPRedirectHandler):
    """urllib's handler; a user and a password go along where the server stays the same."""

    def redirect_request(self, req: Request, *args: Any) -> Request | None:
        new = super().redirect_request(req, *args)
        basic = req.unredirected_hdrs.get("Authorization")
        if new is not None and basic and (new.type, new.host) in ((req.type, req.host), ("https", req.host)):
            new.add_unredirected_header("Authorization", basic)
        return new


def _opener(pace: _Pace) -> Any:
    handlers = _WatchingHTTP(), _WatchingHTTPS()
    for handler in handlers:
        handler.pace = pace
    return build_opener(*handlers, _Redirecting())
