"""An S3 service that keeps objects in memory, and misbehaves when and how a test says."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.registry.faults import reset

Misdeed = Callable[[socket.socket, "Asked"], bool]
"""Answers one request in a way of its own; whether the connection goes on."""


@dataclass(frozen=True)
class Asked:
    """One request. `by_sdk` is whether the SDK made it."""

    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def by_sdk(self) -> bool:
        return "boto" in self.headers.get("user-agent", "").lower()


def answer(status: str, body: bytes, /, *lines: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", 'ETag: "e"', *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def error(status: str, code: str) -> Misdeed:
    """An answer of S3's own kind."""

    def act(connection: socket.socket, asked: Asked) -> bool:
        body = b"" if asked.target.startswith("HEAD ") else f"<Error><Code>{code}</Code></Error>".encode()
        connection.sendall(answer(status, body))
        return True

    return act


@dataclass
class ScriptedS3:
    """`objects` by their path. `misdeeds` are done one after the other, one for each request, before all goes well."""

    objects: dict[str, bytes]
    tls: ssl.SSLContext | None = None
    misdeeds: list[Misdeed] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    credentials: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> ScriptedS3:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End every connection there is, politely."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            with connection:
                while asked := _request(connection):
                    if not self._answer(connection, asked):
                        return

    def _answer(self, connection: socket.socket, asked: Asked) -> bool:
        path = asked.target.split(" ")[1]
        if path == "/credentials":
            lent = self.credentials.pop(0) if len(self.credentials) > 1 else self.credentials[0]
            connection.sendall(answer("200 OK", json.dumps(lent).encode()))
            return True
        self.asked.append(asked)
        if self.misdeeds:
            return self.misdeeds.pop(0)(connection, asked)
        if asked.target.startswith("PUT "):
            self.objects[path] = asked.body
            connection.sendall(answer("200 OK", b""))
            return True
        data = self.objects.get(path)
        if data is None:
            return error("404 Not Found", "NoSuchKey")(connection, asked)
        connection.sendall(self.good(asked, data))
        return True

    def good(self, asked: Asked, data: bytes) -> bytes:
        """The answer to a GET or HEAD of an object."""
        if "range" in asked.headers:
            first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1]
            if not part:
                return answer("416 Range Not Satisfiable", b"<Error><Code>InvalidRange</Code></Error>")
            where = f"Content-Range: bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return answer("206 Partial Content", part, where)
        return answer("200 OK", b"" if asked.target.startswith("HEAD ") else data, length=len(data))

    def breaks_after(self, count: int, hard: bool = False) -> Misdeed:
        """Begin the right answer and end the connection when `count` bytes of the body are sent, `hard` by a reset."""

        def act(connection: socket.socket, asked: Asked) -> bool:
            head, _, body = self.good(asked, self.objects[asked.target.split(" ")[1]]).partition(b"\r\n\r\n")
            connection.sendall(head + b"\r\n\r\n" + body[:count])
            if hard:
                reset(connection)
            return False

        return act


def _request(connection: socket.socket) -> Asked | None:
    raw = b""
    while b"\r\n\r\n" not in raw:
        part = connection.recv(65536)
        if not part:
            return None
        raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "expect" in headers:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts, left = [body], int(headers.get("content-length", "0")) - len(body)
    while left > 0 and (part := connection.recv(min(left, 65536))):
        parts.append(part)
        left -= len(part)
    return Asked(first, headers, b"".join(parts))
