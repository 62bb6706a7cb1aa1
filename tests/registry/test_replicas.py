"""Any process serves any request: uploads hop, servers die, clients race, over one store."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from registry.fsck import Checker
from tests.registry.conftest import Backend
from tests.registry.pushing import begin, manifest_of, push_blob, put_manifest, sha256, sha512
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024


def findings(backend: Backend) -> list[str]:
    return [f"{finding.kind} {finding.key}" for finding in Checker(backend.open()).run()]


def start(registry_server: StartRegistry, backend: Backend, *options: str) -> RunningRegistry:
    return registry_server(backend.storage, *options, env=backend.env)


@pytest.mark.parametrize("digest_of", [sha256, sha512])
def test_upload_hops_between_processes(backend: Backend, registry_server: StartRegistry, digest_of) -> None:
    """Chunks of odd sizes, each to the other process, some larger than a part of the store."""
    servers = [start(registry_server, backend) for _ in range(2)]
    chunks = [os.urandom(size) for size in (100, 17 * MIB + 3, 1, 20 * MIB, 63)]
    data = b"".join(chunks)
    location, offset = begin(httpx.Client(base_url=servers[0].url), "hop/per"), 0
    for turn, chunk in enumerate(chunks):
        end = offset + len(chunk) - 1
        url = servers[(turn + 1) % 2].url + location
        answer = httpx.patch(url, content=chunk, headers={"Content-Range": f"{offset}-{end}"}, timeout=60)
        assert (answer.status_code, answer.headers["range"]) == (202, f"0-{end}")
        location, offset = answer.headers["location"], end + 1
    answer = httpx.put(servers[1].url + location, params={"digest": digest_of(data)}, timeout=60)
    assert answer.status_code == 201
    for server in servers:
        got = httpx.get(f"{server.url}/v2/hop/per/blobs/{digest_of(data)}", follow_redirects=True, timeout=60)
        assert got.content == data
    assert findings(backend) == []


def test_killed_in_the_middle_of_an_upload(backend: Backend, registry_server: StartRegistry) -> None:
    """What the status said was received stays received; the rest is sent to another process and the blob is whole."""
    server = start(registry_server, backend)
    data = os.urandom(MIB) * 100 + b"the end"
    location = begin(httpx.Client(base_url=server.url), "kill/ed")
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        connection.sendall(data[: 90 * MIB])
        deadline = time.monotonic() + 60
        while httpx.get(server.url + location).headers["range"] == "0-0":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
    other = start(registry_server, backend)
    assert httpx.head(f"{other.url}/v2/kill/ed/blobs/{sha256(data)}").status_code == 404
    offset = int(httpx.get(other.url + location).headers["range"].removeprefix("0-")) + 1
    assert 64 * MIB <= offset <= 90 * MIB
    answer = httpx.patch(
        other.url + location,
        content=data[offset:],
        headers={"Content-Range": f"{offset}-{len(data) - 1}"},
        timeout=60,
    )
    assert answer.status_code == 202
    assert httpx.put(other.url + location, params={"digest": sha256(data)}, timeout=60).status_code == 201
    got = httpx.get(f"{other.url}/v2/kill/ed/blobs/{sha256(data)}", follow_redirects=True, timeout=60)
    assert got.content == data
    assert findings(backend) == []


def test_client_that_disappears_loses_nothing_it_sent(backend: Backend, registry_server: StartRegistry) -> None:
    server = start(registry_server, backend)
    location = begin(httpx.Client(base_url=server.url), "gone/away")
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nfirst".encode())
        time.sleep(0.5)  # what still lies in socket buffers when a connection breaks is lost with it
    deadline = time.monotonic() + 20
    while httpx.get(server.url + location).headers["range"] != "0-4":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = httpx.put(
        server.url + location,
        params={"digest": sha256(b"first second")},
        content=b" second",
        headers={"Content-Range": "5-11"},
    )
    assert answer.status_code == 201


def test_same_blob_and_tag_by_many_at_once(backend: Backend, registry_server: StartRegistry) -> None:
    """Every push succeeds, one copy of the bytes remains, and the tag points at one of the manifests."""
    servers = [start(registry_server, backend), start(registry_server, backend, "--workers", "2")]
    data = os.urandom(2 * MIB)

    def push(turn: int) -> str:
        with httpx.Client(base_url=servers[turn % 2].url, timeout=60) as client:
            push_blob(client, "race/d", b"{}")
            push_blob(client, "race/d", data)
            raw = manifest_of([data], annotations={"turn": str(turn)})
            assert put_manifest(client, "race/d", raw, "latest").status_code == 201
            return sha256(raw)

    with ThreadPoolExecutor(6) as pool:
        digests = set(pool.map(push, range(12)))
    store = backend.open()
    assert len(store.list("data/")) == 2
    assert httpx.head(f"{servers[0].url}/v2/race/d/manifests/latest").headers["docker-content-digest"] in digests
    assert findings(backend) == []


def test_two_requests_to_one_upload(backend: Backend, registry_server: StartRegistry) -> None:
    """Of two that append the same place at once, one wins, the other is told where the upload stands."""
    servers = [start(registry_server, backend) for _ in range(2)]
    pieces = [os.urandom(3 * MIB) for _ in range(2)]
    for attempt in range(3):
        location = begin(httpx.Client(base_url=servers[0].url), f"two/r{attempt}")

        def append(turn: int, location: str = location) -> httpx.Response:
            headers = {"Content-Range": f"0-{3 * MIB - 1}"}
            return httpx.patch(servers[turn].url + location, content=pieces[turn], headers=headers, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(append, range(2)))
        assert sorted(answer.status_code for answer in answers) == [202, 416]
        winner = pieces[[answer.status_code for answer in answers].index(202)]
        answer = httpx.put(servers[1].url + location, params={"digest": sha256(winner)}, timeout=60)
        assert answer.status_code == 201
    assert findings(backend) == []


def test_drains_on_sigterm(backend: Backend, registry_server: StartRegistry) -> None:
    """A request that runs when SIGTERM comes is finished; the exit status is 0."""
    server = start(registry_server, backend)
    location = begin(httpx.Client(base_url=server.url), "dra/in")
    host, port = server.host.split(":")
    digest = sha256(b"0123456789")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"PUT {location}?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234".encode()
        )
        time.sleep(0.5)
        server.process.terminate()
        time.sleep(0.5)
        connection.sendall(b"56789")
        assert b" 201 " in connection.recv(65536).split(b"\r\n")[0]
    assert server.process.wait(timeout=30) == 0
