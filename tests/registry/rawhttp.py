"""HTTP by hand, for clients that do what no HTTP library does."""

from __future__ import annotations

import socket

from tests.registry.servers import RunningRegistry


def connect(server: RunningRegistry) -> socket.socket:
    host, port = server.host.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(method: str, path: str, **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    raw = b""
    while b"\r\n\r\n" not in raw:
        part = connection.recv(1)  # no more than the head: what follows the body is the next answer
        assert part, f"closed after {raw[:100]!r}"
        raw += part
    top, _, body = raw.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers.get("content-length", 0)):
        part = connection.recv(int(headers["content-length"]) - len(body))
        assert part
        body += part
    return int(lines[0].split()[1]), headers, body
