"""Memory does not grow with the blob, on its way in or out."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.registry.conftest import Backend
from tests.registry.pushing import begin
from tests.registry.rawhttp import connect, head, read_answer
from tests.registry.servers import S3, RunningRegistry, StartRegistry

MIB = 1024 * 1024
PUSH = 64 * MIB
"""What an upload may take whose length is known: over S3 three parts of 16 MiB, and two buffers."""
STREAM = 110 * MIB
"""What one may take that comes in chunks, through the event loop."""
PULL = 16 * MIB


def pieces(size: int) -> Iterator[bytes]:
    """Bytes that never repeat a part of theirs."""
    for number in range(size // MIB):
        yield number.to_bytes(8, "big") * (MIB // 8)


def peak(server: RunningRegistry) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def begin_peak(server: RunningRegistry) -> int:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return peak(server)


def digest_of(size: int) -> str:
    hasher = hashlib.sha256()
    for piece in pieces(size):
        hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"


def push(server: RunningRegistry, size: int) -> str:
    digest = digest_of(size)
    with httpx.Client(base_url=server.url) as client:
        location = begin(client, "me/mory")
    with connect(server) as connection:
        connection.settimeout(120)
        connection.sendall(head("PUT", f"{location}?digest={digest}", Content_Length=size))
        for piece in pieces(size):
            connection.sendall(piece)
        assert read_answer(connection)[0] == 201
    return digest


def stream(server: RunningRegistry, size: int) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        answer = client.patch(begin(client, "me/mory"), content=pieces(size))
        assert client.put(answer.headers["location"], params={"digest": digest_of(size)}).status_code == 201


def pull(server: RunningRegistry, digest: str, size: int) -> None:
    with connect(server) as connection:
        connection.settimeout(120)
        connection.sendall(head("GET", f"/v2/me/mory/blobs/{digest}"))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        assert b" 200 " in answer
        left, room, hasher = size, memoryview(bytearray(MIB)), hashlib.sha256()
        while left:
            count = connection.recv_into(room, 0, socket.MSG_WAITALL)
            assert count, "the answer is short"
            hasher.update(room[:count])
            left -= count
    assert digest == f"sha256:{hasher.hexdigest()}"


def test_memory_does_not_grow_with_the_blob(backend: Backend, registry_server: StartRegistry) -> None:
    server = registry_server(backend.storage, "--no-redirect", env=backend.env)
    pull(server, push(server, 2 * MIB), 2 * MIB)  # what is loaded once is loaded now
    size = 512 * MIB
    before = begin_peak(server)
    digest = push(server, size)
    assert peak(server) - before < PUSH
    before = begin_peak(server)
    pull(server, digest, size)
    assert peak(server) - before < PULL
    before = begin_peak(server)
    stream(server, size // 4)
    assert peak(server) - before < STREAM


def test_memory_is_taken_for_bytes_and_not_for_what_is_said_of_them(
    backend: Backend, registry_server: StartRegistry
) -> None:
    """A length of a terabyte is one that the storage takes, in parts of 96 MiB."""
    server = registry_server(backend.storage, "--no-redirect", env=backend.env)
    pull(server, push(server, 2 * MIB), 2 * MIB)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = begin(client, "me/mory")
        before = begin_peak(server)
        with connect(server) as connection:
            connection.sendall(head("PATCH", location, Content_Length=10**12) + bytes(3 * MIB))
            time.sleep(0.5)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert client.get(location).headers["range"] == f"0-{3 * MIB - 1}"
    assert peak(server) - before < PULL


def test_a_length_that_no_object_can_have_is_refused_before_a_byte_is_taken(
    s3: S3, registry_server: StartRegistry
) -> None:
    server = registry_server(s3.storage(), env=s3.env)
    with httpx.Client(base_url=server.url) as client:
        location = begin(client, "me/mory")
        digest = digest_of(MIB)
        for length in (2 * 10**12, 9 * 10**18):
            for method, path in (
                ("PATCH", location),
                ("PUT", f"{location}?digest={digest}"),
                ("POST", f"/v2/me/mory/blobs/uploads/?digest={digest}"),
            ):
                with connect(server) as connection:
                    connection.sendall(head(method, path, Content_Length=length) + b"x")
                    status, _, body = read_answer(connection)
                    assert status == 413
                    assert json.loads(body)["errors"][0]["code"] == "SIZE_INVALID"
        assert client.put(location, params={"digest": digest}, content=b"".join(pieces(MIB))).status_code == 201
