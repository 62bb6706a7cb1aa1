"""What other registries got wrong, tried on this one. Each test names the report it comes from."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from registry import keys
from registry.store.open import open_store
from tests.registry.pushing import (
    INDEX,
    MANIFEST,
    begin,
    descriptor,
    error_code,
    manifest_of,
    push_blob,
    push_image,
    put_manifest,
    sha256,
)  # fmt: skip
from tests.registry.servers import RunningRegistry, StartRegistry


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside") / "storage"


@pytest.fixture(scope="module")
def server(session_registries: StartRegistry, storage: Path) -> RunningRegistry:
    return session_registries(storage)


@pytest.fixture
def client(server: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/v2/_catalog", "/v2/bound/ed/tags/list"])
@pytest.mark.parametrize("count", ["2147483647", "9" * 400])
def test_page_size_is_bounded(client: httpx.Client, path: str, count: str) -> None:
    """CVE-2023-2253: ``n`` decides no allocation."""
    push_blob(client, "bound/ed", b"{}")
    assert client.get(f"{path}?n={count}").status_code == 200
    assert client.get(f"{path}?n=-1").status_code == 400


def test_deleted_blob_does_not_come_back_through_another_repository(client: httpx.Client) -> None:
    """CVE-2026-35172."""
    digest = push_blob(client, "stale/a", b"deleted in one place")
    push_blob(client, "stale/b", b"deleted in one place")
    assert client.get(f"/v2/stale/a/blobs/{digest}").status_code == 200
    client.delete(f"/v2/stale/a/blobs/{digest}")
    assert client.get(f"/v2/stale/b/blobs/{digest}").status_code == 200
    for method in ("GET", "HEAD"):
        assert client.request(method, f"/v2/stale/a/blobs/{digest}").status_code == 404
    answer = client.post("/v2/stale/c/blobs/uploads/", params={"mount": digest, "from": "stale/a"})
    assert answer.status_code == 202


def test_blobs_of_other_repositories_are_not_visible(client: httpx.Client) -> None:
    """CVE-2024-39897: that a blob exists elsewhere is not told by HEAD, GET, mount or a manifest."""
    digest = push_blob(client, "mine/private", b"a blob of one repository")
    push_blob(client, "yours/public", b"{}")
    for method in ("GET", "HEAD", "DELETE"):
        assert client.request(method, f"/v2/yours/public/blobs/{digest}").status_code == 404
    query = {"mount": digest, "from": "yours/public"}
    assert client.post("/v2/yours/public/blobs/uploads/", params=query).status_code == 202
    raw = manifest_of([b"a blob of one repository"])
    assert put_manifest(client, "yours/public", raw, "v1").status_code == 404


def test_a_document_is_one_kind(client: httpx.Client) -> None:
    """CVE-2021-41190: not both manifests and layers; mediaType and Content-Type agree."""
    raw = push_image(client, "one/kind")
    both = {**json.loads(raw), "manifests": [descriptor(raw, MANIFEST)]}
    for media_type in (MANIFEST, INDEX):
        document = json.dumps({**both, "mediaType": media_type}).encode()
        answer = put_manifest(client, "one/kind", document, "both", media_type)
        assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    answer = put_manifest(client, "one/kind", raw, "other", INDEX)
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")


def test_uploads_belong_to_one_repository(client: httpx.Client) -> None:
    """CVE-2022-31667 and others: an object's id is checked against the place it is used in."""
    location = begin(client, "owner/one")
    client.patch(location, content=b"secret")
    stolen = location.replace("owner/one", "thief/two")
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = client.request(method, f"{stolen}?digest={sha256(b'secret')}")
        assert answer.status_code == 404
    assert client.get(location).status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        "/v2/a/blobs/sha256:../../../../etc/passwd",
        "/v2/a/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd",
        "/v2/a/manifests/..%2f..%2f_tags%2fv1",
        "/v2/../../etc/passwd",
        "/v2/a%2f..%2f..%2fb/tags/list",
        "/v2/%2e%2e/tags/list",
        "/v2/a/blobs/uploads/..%2f..%2fdata",
        "/v2/a%00/tags/list",
        "/v2/_blobs/tags/list",
        "/v2/a/_tags/tags/list",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_nothing_untrusted_becomes_a_path(server: RunningRegistry, storage: Path, method: str, path: str) -> None:
    """CVE-2024-37032, CVE-2026-7020: checked by grammar before it names a file."""
    (storage.parent / "data").write_bytes(b"outside")
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        answer = connection.recv(65536)
    assert answer.split()[1] in (b"400", b"404", b"405")
    assert b"outside" not in answer
    assert b"root:" not in answer
    assert {path.name for path in storage.parent.iterdir()} == {"storage", "data"}


@pytest.mark.parametrize("way", ["post", "put", "patch"])
def test_bytes_are_hashed_before_they_are_a_blob(client: httpx.Client, way: str) -> None:
    """Docker Model Runner #848: no way in goes round the digest."""
    digest = sha256(b"good bytes")
    if way == "post":
        answer = client.post("/v2/hash/ed/blobs/uploads/", params={"digest": digest}, content=b"evil bytes")
    else:
        location = begin(client, "hash/ed")
        if way == "patch":
            client.patch(location, content=b"evil bytes")
        answer = client.put(location, params={"digest": digest}, content=b"evil bytes" if way == "put" else b"")
    assert answer.status_code == 400
    assert client.head(f"/v2/hash/ed/blobs/{digest}").status_code == 404


def test_compressed_bodies_are_bytes(client: httpx.Client) -> None:
    """CVE-2024-12886: nothing is ever decompressed, whatever Content-Encoding says."""
    bomb = bytes.fromhex("1f8b08000000000000ff") + b"\0" * 100
    digest = sha256(bomb)
    location = begin(client, "gz/ip")
    answer = client.put(location, params={"digest": digest}, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 201
    got = client.get(f"/v2/gz/ip/blobs/{digest}", headers={"Accept-Encoding": "gzip"})
    assert got.content == bomb
    assert "content-encoding" not in got.headers


def test_manifests_are_bounded_while_they_are_received(server: RunningRegistry) -> None:
    """A manifest without a length is cut off at the limit, not gathered."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200 * 2**20:
            sent += 2**20
            yield b" " * 2**20

    try:
        answer = httpx.put(
            f"{server.url}/v2/big/manifest/manifests/v1",
            content=endless(),
            headers={"Content-Type": MANIFEST},
            timeout=60,
        )
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server has closed the connection before the client was through
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize("text", ["\x1b[31mred", "<script>", "a\r\nX-Evil: 1"])
def test_what_was_sent_does_not_steer_the_answer(client: httpx.Client, text: str) -> None:
    """Errors are JSON; a header never carries a client's text unchecked."""
    answer = client.get("/v2/text/x/manifests/" + quote(text, safe=""))
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] in ("application/json", "text/plain; charset=utf-8")
    assert "x-evil" not in answer.headers
    answer = client.get("/v2/text/x/referrers/" + sha256(b""), params={"artifactType": text})
    assert answer.headers.get("oci-filters-applied") == "artifactType"
    assert "x-evil" not in answer.headers


def test_an_upload_ends_with_its_time(client: httpx.Client, storage: Path) -> None:
    """An upload expires: whoever finds its id a day later can do nothing with it."""
    location = begin(client, "late/upload")
    assert client.patch(location, content=b"first").status_code == 202
    store = open_store(str(storage))
    session = keys.session(location.partition("?")[0].rpartition("/")[2])
    store.put(session, json.dumps({**json.loads(store.get(session).data), "expires": 1}).encode())
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = client.request(method, location, params={"digest": sha256(b"first")})
        assert answer.status_code == 404
    assert client.head(f"/v2/late/upload/blobs/{sha256(b'first')}").status_code == 404
