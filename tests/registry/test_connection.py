"""Large bodies between socket and thread: clients that are slow, impatient, gone, or have more to ask."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path

import httpx
import pytest

from artifact.digest import Digest
from registry.blobs import Blobs
from registry.store.open import open_store
from tests.registry.conftest import environment
from tests.registry.pushing import begin, push_blob, sha256
from tests.registry.rawhttp import connect, head, read_answer
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024
DATA = os.urandom(5 * MIB + 123)
DIGEST = sha256(DATA)


@pytest.fixture(scope="module")
def server(
    driver: str,
    request: pytest.FixtureRequest,
    session_registries: StartRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningRegistry:
    """One that sends every byte itself."""
    if driver == "filesystem":
        return session_registries(tmp_path_factory.mktemp("storage"))
    s3 = request.getfixturevalue("s3")
    return session_registries(s3.storage(), "--no-redirect", env=s3.env)


def upload(server: RunningRegistry, repo: str) -> str:
    with httpx.Client(base_url=server.url) as client:
        return begin(client, repo)


def test_many_requests_on_one_connection(server: RunningRegistry, repo: str) -> None:
    """The bytes after a body that went past the parser are the next request, even if they were sent at once."""
    with connect(server) as connection:
        for _ in range(3):
            put = head("PUT", f"{upload(server, repo)}?digest={DIGEST}", Content_Length=len(DATA))
            connection.sendall(put + DATA + head("GET", f"/v2/{repo}/blobs/{DIGEST}"))
            assert read_answer(connection)[0] == 201
            status, _, body = read_answer(connection)
            assert status == 200
            assert body == DATA
        connection.sendall(head("GET", f"/v2/{repo}/blobs/{DIGEST}", Range="bytes=10-2000000"))
        assert read_answer(connection)[2] == DATA[10:2000001]


def test_expect_100_continue(server: RunningRegistry, repo: str) -> None:
    with connect(server) as connection:
        location = upload(server, repo)
        connection.sendall(
            head("PUT", f"{location}?digest={DIGEST}", Content_Length=len(DATA), Expect="100-continue")
        )  # fmt: skip
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(DATA)
        assert read_answer(connection)[0] == 201


def test_slow_sender(server: RunningRegistry, repo: str) -> None:
    """Pauses longer than a thread waits, and pieces smaller than what wakes it, down to the last bytes."""
    with connect(server) as connection:
        connection.sendall(head("PUT", f"{upload(server, repo)}?digest={DIGEST}", Content_Length=len(DATA)))
        cuts = [0, 1, 100_000, 3 * MIB, 3 * MIB + 1, len(DATA) - 7, len(DATA)]
        for start, end in itertools.pairwise(cuts):
            connection.sendall(DATA[start:end])
            time.sleep(0.1)
        assert read_answer(connection)[0] == 201
        assert httpx.get(f"{server.url}/v2/{repo}/blobs/{DIGEST}").content == DATA


def test_sender_that_goes_away(server: RunningRegistry, repo: str) -> None:
    """What has come is kept, to the byte, and the rest can be sent later."""
    location = upload(server, repo)
    with connect(server) as connection:
        connection.sendall(head("PATCH", location, Content_Length=len(DATA)) + DATA[: 3 * MIB + 17])
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
    deadline = time.monotonic() + 20
    while (standing := httpx.get(server.url + location).headers["range"]) != f"0-{3 * MIB + 16}":
        assert time.monotonic() < deadline, standing
        time.sleep(0.05)
    answer = httpx.put(
        server.url + location, params={"digest": DIGEST}, content=DATA[3 * MIB + 17 :],
        headers={"Content-Range": f"{3 * MIB + 17}-{len(DATA) - 1}"},
    )  # fmt: skip
    assert answer.status_code == 201


def test_wrong_bytes_are_refused(server: RunningRegistry, repo: str) -> None:
    with connect(server) as connection:
        location = upload(server, repo)
        put = head("PUT", f"{location}?digest={DIGEST}", Content_Length=len(DATA))
        connection.sendall(put + bytes(len(DATA)))
        assert read_answer(connection)[0] == 400
        connection.sendall(head("HEAD", f"/v2/{repo}/blobs/{DIGEST}"))
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_reader_that_is_slow_and_reader_that_goes_away(server: RunningRegistry, repo: str, driver: str) -> None:
    """A client that does not read costs no thread, and one that leaves costs nothing more."""
    big = os.urandom(MIB) * 24
    with httpx.Client(base_url=server.url) as client:
        digest = push_blob(client, repo, big)
        stalled = [connect(server) for _ in range(70)]  # more than there are threads
        for connection in stalled:
            connection.sendall(head("GET", f"/v2/{repo}/blobs/{digest}"))
        time.sleep(0.5)
        assert client.get(f"/v2/{repo}/blobs/{digest}", timeout=30).content == big
        for connection in stalled[1:]:
            connection.close()
        assert read_answer(stalled[0])[2] == big
        stalled[0].close()
        deadline = time.monotonic() + 20
        while "stowage_registry_requests_in_flight 0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    opened = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    kept = 64 if driver == "s3" else 0  # connections to the store that wait for the next request
    assert opened < 60 + kept, "descriptors of clients that are gone were closed"


def test_chunked_bodies_take_the_ordinary_way(server: RunningRegistry, repo: str) -> None:
    pieces = [DATA[start : start + 700_000] for start in range(0, len(DATA), 700_000)]
    answer = httpx.put(server.url + upload(server, repo), params={"digest": DIGEST}, content=iter(pieces))
    assert answer.status_code == 201
    assert httpx.get(f"{server.url}/v2/{repo}/blobs/{DIGEST}").content == DATA


def test_blob_that_is_cut_short_in_the_store(
    server: RunningRegistry, repo: str, driver: str, request: pytest.FixtureRequest
) -> None:
    """The answer ends short of its length, so that no client takes it for the blob, and the log says why."""
    with httpx.Client(base_url=server.url) as client:
        digest = push_blob(client, repo, os.urandom(5 * MIB))
        with environment(request.getfixturevalue("s3").env if driver == "s3" else {}):
            store = open_store(server.storage)
        store.put(Blobs(store).record(Digest.parse(digest)).data, os.urandom(3 * MIB))
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"/v2/{repo}/blobs/{digest}")
        assert "shorter than its record" in server.log.read_text()
        assert client.get("/v2/").status_code == 200
