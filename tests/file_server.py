"""A small HTTP server for one file that can misbehave as networks do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves `content` at every path.

    Attributes:
        requests: (method, path, Range header) of each request so far.
        cut: list of numbers of bytes after which the next responses break off; then they come whole.
        status: answer every request with this status and no content.
        reason: said beside the status.
        drip: seconds between two bytes of the answer, from its first header on or only of its body (`drip_headers`).
        authorizations: Authorization headers that were sent.
        gate: body bytes past the first half wait for this event.
        headers: sent with every answer.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: list[int] = []
        self.status = 0
        self.reason: str | None = None
        self.drip = 0.0
        self.drip_headers = True
        self.authorizations: set[str | None] = set()
        self.gate: threading.Event | None = None
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self) -> list[str | None]:
        return [header for method, _, header in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.command, self.path, wanted))
        server.authorizations.add(self.headers.get("Authorization"))
        if server.drip and server.drip_headers:
            self.wfile = _Dripping(self.wfile, server)  # type: ignore[assignment]
        if server.status:
            self.send_response_only(server.status, server.reason)
            self.send_own_headers()
            return
        body = server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_own_headers()
        if self.command == "HEAD":
            return
        if server.cut:
            body = body[: server.cut.pop(0)]
        if server.drip and not server.drip_headers:
            self.wfile = _Dripping(self.wfile, server)  # type: ignore[assignment]
        half = len(body) // 2
        try:
            self.wfile.write(body[:half])
            if server.gate is not None:
                server.gate.wait(30)
            self.wfile.write(body[half:])
        except OSError:
            pass  # the client went away
        self.close_connection = True

    def send_own_headers(self) -> None:
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Dripping:
    """A file whose bytes go out one by one."""

    def __init__(self, file: Any, server: FileServer) -> None:
        self.file, self.server = file, server
        self.flush, self.closed = file.flush, False

    def write(self, data: bytes) -> None:
        for byte in data:
            if self.server.drip and not self.closed:
                time.sleep(self.server.drip)
                try:
                    self.file.write(bytes([byte]))
                except OSError:  # the client went away
                    self.closed = True

    def close(self) -> None:
        self.closed = True
        self.file.close()


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    server = FileServer(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if server.gate is not None:
            server.gate.set()
        server.drip = 0.0
        server.shutdown()
        server.server_close()
        thread.join()
