"""A registry that is slow, lies and breaks off, as it is told: what caches have to live with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.registry.pushing import sha256


@dataclass
class Blob:
    """A blob of `Original`: its bytes, and how often it breaks off after so many of them. Beyond `gated_at` bytes a
    whole answer waits for `gate`."""

    content: bytes
    breaks: list[int] = field(default_factory=list)
    gated_at: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)


class Original(ThreadingHTTPServer):
    """A registry with the same blobs in every repository, that can be slow, lie and break off."""

    daemon_threads = True

    def __init__(self, realm: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.realm = realm
        self.blobs: dict[str, Blob] = {}
        self.asked: list[tuple[str, str, str]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def has(self, blob: Blob, digest: str | None = None) -> str:
        """Have a blob, under its digest or another."""
        digest = digest or sha256(blob.content)
        self.blobs[digest] = blob
        return digest

    def ranges(self, digest: str) -> list[str]:
        """The ranges of every GET of a blob; empty text for the whole."""
        return [part for method, path, part in list(self.asked) if method == "GET" and path.endswith(digest)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Original

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server, part = self.server, self.headers.get("Range", "")
        server.asked.append((self.command, self.path, part))
        blob = server.blobs.get(self.path.rpartition("/")[2])
        if self.path.startswith("/token"):
            return self._send(200, Blob(b'{"token":"t"}'))
        if server.realm and "Authorization" not in self.headers:
            return self._send(401, Blob(b""), {"WWW-Authenticate": f'Bearer realm="{server.realm}",service="s"'})
        if blob is None:
            return self._send(404, Blob(b"{}"))
        if not part:
            return self._send(200, blob)
        start, end = (int(text) for text in part.removeprefix("bytes=").split("-"))
        headers = {"Content-Range": f"bytes {start}-{end}/{len(blob.content)}"}
        self._send(206, Blob(blob.content[start : end + 1], blob.breaks), headers)

    def _send(self, status: int, blob: Blob, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(blob.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = blob.breaks.pop(0) if blob.breaks else len(blob.content)
        self.close_connection = end < len(blob.content)
        first = end if blob.gated_at is None else min(blob.gated_at, end)
        try:
            self.wfile.write(blob.content[:first])
            if blob.gated_at is not None:
                blob.gate.wait(60)
            self.wfile.write(blob.content[first:end])
        except OSError:
            self.close_connection = True


@contextmanager
def original(realm: str = "") -> Iterator[Original]:
    server = Original(realm)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for blob in server.blobs.values():
            blob.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
