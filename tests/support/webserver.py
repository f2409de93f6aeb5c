"""A web server for tests: it serves the files of a folder, with ranges or without, late, and counts."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """A server.

    Attributes:
        url: of the folder.
        requests: bytes that were sent for each request.
        failing: how many requests fail.
        surplus: bytes that each range has too many.

    """

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool, latency: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges, self.latency = folder, ranges, latency
        self.requests: list[int] = []
        self.failing = 0
        self.surplus = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(False)

    def do_GET(self) -> None:
        self._send(True)

    def _send(self, body: bool) -> None:
        time.sleep(self.server.latency)
        if body and self.server.failing:
            self.server.failing -= 1
            self.send_error(503)
            return
        file = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if not file.exists():
            self.send_error(404)
            return
        data = file.read_bytes()
        size = len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        if asked:
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            data = data[first : last + 1] + bytes(self.server.surplus)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.server.requests.append(len(data) if body else 0)
        if body:
            with contextlib.suppress(OSError):  # who asked has seen enough
                self.wfile.write(data)


@contextlib.contextmanager
def serving(folder: Path, ranges: bool = True, latency: float = 0) -> Iterator[Server]:
    """Serve the files of a folder; latency: seconds before each answer."""
    with Server(folder, ranges, latency) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
