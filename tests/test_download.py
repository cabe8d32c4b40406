"""Downloads: bounds of speed, time and size, what is said of each fault, and whose password it is."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

from timm_ghn_init.checkpoints import download as module
from timm_ghn_init.checkpoints.download import DownloadError, download

resource = pytest.importorskip("resource")
CONTENT = os.urandom(20_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x"


def refused(url: str, file: Path) -> str:
    with pytest.raises(DownloadError) as error:
        download(url, file)
    return str(error.value)


def test_too_slow(server: FileServer, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 0.2)
    server.drip, server.drip_headers = 0.02, False
    begun = time.monotonic()
    assert "too slow: " in refused(server.url, file)
    assert time.monotonic() - begun < 5
    assert len(server.requests) == 1


def test_the_bounds_are_those_that_are_documented() -> None:
    text = " ".join((download.__doc__ or "").split())
    assert (module.TIMEOUT, module.SLOWEST, module.WINDOW) == (5, 1000, 30)
    assert "nothing for 5 seconds, or less than 1000 bytes a second over 30 seconds" in text


@pytest.mark.parametrize("status", [201, 204, 202])
def test_an_answer_without_a_file(server: FileServer, file: Path, status: int) -> None:
    server.status, server.reason = status, "Nothing"
    assert f"answered {status} Nothing, without a file" in refused(server.url, file)


def test_an_empty_file(server: FileServer, file: Path) -> None:
    server.content = b""
    assert "ended after 0 bytes" in refused(server.url, file)


def test_a_full_disk_is_no_fault_of_the_network(server: FileServer, file: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            download(server.url, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.requests) == 1


def test_what_a_server_says_steers_no_terminal(server: FileServer, file: Path) -> None:
    server.status, server.reason = 500, "\x1b]0;owned\x07\x1b[31mred \x9b hf_abcdefghijkl http://me:secret@host/"
    text = refused(server.url, file)
    assert text.isprintable()
    assert "answered 500" in text and "red" in text
    assert "secret" not in text and "abcdefghijkl" not in text


@pytest.mark.parametrize(
    ("user", "sent"), [("me:s3cret", "me:s3cret"), ("me%40home:p%2Fw", "me@home:p/w"), ("me", "me")]
)
def test_an_address_with_a_user(server: FileServer, file: Path, user: str, sent: str) -> None:
    download(server.url.replace("://", f"://{user}@"), file)
    assert file.read_bytes() == CONTENT
    assert server.authorizations == {f"Basic {base64.b64encode(sent.encode()).decode()}"}


def test_a_password_goes_to_its_own_server_only(server: FileServer, file: Path) -> None:
    with serving(b"") as first:
        first.status, first.headers = 302, {"Location": f"{server.url}/elsewhere"}
        download(first.url.replace("://", "://me:s3cret@"), file)
        assert first.authorizations != {None}
    assert file.read_bytes() == CONTENT
    assert server.authorizations == {None}


@pytest.mark.parametrize(
    "user", ["me:s3cret", "s3cret", "me:s3/cret", "me:s3@cret", "me:s3?cret", "me:s3#cret", "me:s3:cret", "me:[s3cret"]
)
def test_a_password_is_shown_to_nobody(file: Path, user: str, caplog: pytest.LogCaptureFixture) -> None:
    text = refused(f"http://{user}@127.0.0.1:9/x", file)
    assert "s3" not in text + caplog.text and "cret" not in text + caplog.text
    assert "127.0.0.1:9/x" in text
