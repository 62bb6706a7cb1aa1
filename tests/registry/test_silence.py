"""Clients that go away without a word, and what they held in the meantime."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from registry.serve import _listen
from tests.registry.conftest import Backend
from tests.registry.pushing import begin, push_blob, sha256
from tests.registry.rawhttp import connect, head
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024
DATA = os.urandom(5 * MIB + 123)
QUICK = "from registry.http import connection; connection.SILENCE = 0.5"
CHUNK = b"%x\r\n" % (2 * MIB) + DATA[: 2 * MIB] + b"\r\n"
STARTED = (
    lambda location: head("PATCH", location, Content_Length=len(DATA)) + DATA[: 2 * MIB],
    lambda location: head("PATCH", location, Transfer_Encoding="chunked") + CHUNK,
)


def standing(server: RunningRegistry, location: str, offset: int) -> str:
    """Where an upload stands, once it is `offset` bytes or a while is over."""
    deadline = time.monotonic() + 20
    while (found := httpx.get(server.url + location).headers["range"]) != f"0-{offset - 1}":
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("body", STARTED, ids=["length", "chunked"])
def test_who_says_nothing_for_too_long_is_gone(
    backend: Backend, registry_server: StartRegistry, body: Callable[[str], bytes]
) -> None:
    """What has come is kept, for whoever goes on with it."""
    server = registry_server(backend.storage, env=backend.env, first=QUICK)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = begin(client, "si/lent")
        with connect(server) as connection:
            connection.sendall(body(location))
            assert standing(server, location, 2 * MIB) == f"0-{2 * MIB - 1}"
            assert connection.recv(1) == b""
        answer = client.put(location, params={"digest": sha256(DATA)}, content=DATA[2 * MIB :])
        assert answer.status_code == 201, answer.text
    assert "ASGI" not in server.log.read_text()


@pytest.mark.parametrize("body", STARTED, ids=["length", "chunked"])
def test_an_upload_that_breaks_off_is_nothing_to_complain_of(
    registry_server: StartRegistry, tmp_path: Path, body: Callable[[str], bytes]
) -> None:
    server = registry_server(tmp_path / "storage")
    with httpx.Client(base_url=server.url) as client:
        location = begin(client, "si/lent")
    with connect(server) as connection:
        connection.sendall(body(location))
        time.sleep(0.3)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert standing(server, location, 2 * MIB) == f"0-{2 * MIB - 1}"
    assert "ASGI" not in server.log.read_text()


def test_who_waits_for_an_upload_keeps_nobody_else_waiting(registry_server: StartRegistry, tmp_path: Path) -> None:
    server = registry_server(tmp_path / "storage")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = begin(client, "si/lent")
        digest = push_blob(client, "si/lent", b"another")
        with connect(server) as holding:
            holding.sendall(head("PATCH", location, Content_Length=len(DATA)) + DATA[: 2 * MIB])
            time.sleep(0.3)
            with ThreadPoolExecutor(130) as pool:
                waiting = [
                    pool.submit(httpx.patch, server.url + location, content=b"x", timeout=60) for _ in range(130)
                ]
                while sum(item.done() for item in waiting) < 126:  # all but those few that wait
                    time.sleep(0.01)
                assert client.get(f"/v2/si/lent/blobs/{digest}").content == b"another"
                held = not all(item.done() for item in waiting)
                assert {item.result().status_code for item in waiting} == {416}
            assert held
            waiting_for_it = ThreadPoolExecutor(1).submit(
                httpx.patch, server.url + location, content=DATA[2 * MIB :], timeout=60,
                headers={"Content-Range": f"{2 * MIB}-{len(DATA) - 1}"},
            )  # fmt: skip
            time.sleep(0.3)
        assert waiting_for_it.result().status_code == 416  # it is told where the upload stands now
        answer = client.put(location, params={"digest": sha256(DATA)}, content=DATA[2 * MIB :])
        assert answer.status_code == 201, answer.text


def test_connections_are_asked_whether_their_clients_are_there() -> None:
    listener = _listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
