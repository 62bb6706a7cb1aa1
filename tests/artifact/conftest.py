"""A server that does exactly what a test tells it to: the ones in the field misbehave in more ways than they admit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import settings

import artifact.layout.blobs
import artifact.layout.pieces
from tests.artifact.chunked import NEAR, PIECE

# How long an example takes is up to whatever else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@dataclass
class Exchange:
    """A request as it arrived, and the handler to answer it with."""

    method: str
    path: str
    headers: dict[str, str]
    handler: BaseHTTPRequestHandler

    def body(self) -> bytes:
        return self.handler.rfile.read(int(self.headers.get("content-length", "0")))

    def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        if self.method != "HEAD":
            self.handler.wfile.write(body)

    def hang_up(self) -> None:
        self.handler.close_connection = True
        self.handler.connection.close()


@dataclass
class ScriptedServer:
    host: str
    seen: list[Exchange] = field(default_factory=list)
    script: Callable[[Exchange], None] = lambda exchange: exchange.answer(404)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is what many of these tests are about."""


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Exchange], None]], ScriptedServer]]:
    """Start servers that answer every request by calling a function."""
    running: list[ThreadingHTTPServer] = []

    def start(script: Callable[[Exchange], None]) -> ScriptedServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                exchange = Exchange(self.command, self.path, headers, self)
                scripted.seen.append(exchange)
                scripted.script(exchange)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        server = _Server(("127.0.0.1", 0), Handler)
        scripted = ScriptedServer(f"127.0.0.1:{server.server_address[1]}", script=script)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        running.append(server)
        return scripted

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the logins and uploads of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("DOCKER_CONFIG", "XDG_STATE_HOME", "XDG_DATA_HOME", "STOWAGE_STORE", "STOWAGE_TOKEN_HOSTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow one another at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces as small as the chunks of `tests.artifact.chunked` need."""
    monkeypatch.setattr(artifact.layout.pieces, "PIECE", PIECE)
    monkeypatch.setattr(artifact.layout.pieces, "NEAR", NEAR)
    monkeypatch.setattr(artifact.layout.blobs, "IN_PIECES", PIECE)


@pytest.fixture(params=["each", "whole"])
def proving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chunks are checked each when it arrives, or all only if the digest of the whole is wrong."""
    monkeypatch.setattr(artifact.layout.pieces, "_PROVE_BELOW", float("inf") if request.param == "each" else 0)
    return request.param
