"""Uploads composed from ranges of blobs that the registry holds."""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from artifact.digest import Digest
from artifact.errors import Malformed
from registry import compose, keys
from registry.blobs import Blobs
from registry.condemned import Condemned
from registry.config.sections import Config
from registry.fsck import Checker
from registry.http.app import create_app
from registry.store.s3writer import PART
from tests.registry import secured
from tests.registry.conftest import Backend
from tests.registry.pushing import begin, error_code, push_blob, sha256, sha512
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024
RANGES = {"Content-Type": compose.MEDIA_TYPE}


def document(*ranges: tuple[str, int, int], **more: Any) -> bytes:
    items = [{"from": digest, "offset": offset, "length": length, **more} for digest, offset, length in ranges]
    return json.dumps({"ranges": items}).encode()


def composed(client: httpx.Client, location: str, *ranges: tuple[str, int, int], **more: Any) -> httpx.Response:
    return client.patch(location, content=document(*ranges, **more), headers=RANGES)


def stands(client: httpx.Client, location: str) -> int:
    """How many bytes the registry has of an upload."""
    return int(client.get(location).headers["range"].removeprefix("0-")) + 1


def finish(client: httpx.Client, location: str, repo: str, data: bytes) -> None:
    """Close an upload, and see that the blob is `data`."""
    answer = client.put(location, params={"digest": sha256(data)})
    assert answer.status_code == 201, answer.text
    got = client.get(f"/v2/{repo}/blobs/{sha256(data)}", follow_redirects=True)
    assert got.content == data


def test_a_blob_of_ranges_and_new_bytes_over_two_replicas(backend: Backend, registry_server: StartRegistry) -> None:
    """Ranges and bytes in turn, each to the other process, whole parts of the store among them and none aligned."""
    servers = [registry_server(backend.storage, env=backend.env) for _ in range(2)]
    clients = [httpx.Client(base_url=server.url, timeout=120) for server in servers]
    old, other = os.urandom(3 * PART + 12_345), os.urandom(MIB)
    first, second = push_blob(clients[0], "some/model", old), push_blob(clients[1], "some/model", other)
    answer = clients[0].post("/v2/some/model/blobs/uploads/")
    assert answer.headers["stowage-compose"] == "v1"
    location = answer.headers["location"]
    head, middle = os.urandom(70_001), os.urandom(3)
    steps: list[bytes | list[tuple[str, int, int]]] = [
        head,
        [(first, 11, 2 * PART + 5), (second, 5, 1000)],
        middle,
        [(second, 0, len(other)), (first, len(old) - 9, 9), (first, 0, len(old))],
    ]
    for turn, step in enumerate(steps):
        client = clients[(turn + 1) % 2]
        answer = client.patch(location, content=step) if isinstance(step, bytes) else composed(client, location, *step)
        assert answer.status_code == 202, answer.text
        location = answer.headers["location"]
    data = head + old[11 : 2 * PART + 16] + other[5:1005] + middle + other + old[-9:] + old
    assert stands(clients[0], location) == len(data)
    finish(clients[1], location, "some/model", data)
    assert list(Checker(backend.open()).run()) == []
    for client in clients:
        client.close()


def test_ranges_must_come_where_the_upload_stands(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, b"0123456789")
    location = begin(client, repo)
    body = document((digest, 2, 4))
    for place, status in (("0-3", 202), ("0-3", 416), ("5-8", 416), ("4-8", 400), ("4-7", 202)):
        answer = client.patch(location, content=body, headers={**RANGES, "Content-Range": place})
        assert answer.status_code == status, (place, answer.text)
        if status == 416:
            assert answer.headers["range"] == "0-3"
    finish(client, location, repo, b"23452345")


def test_a_blob_that_goes_by_its_sha512(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, b"0123456789")
    location = begin(client, repo, **{"digest-algorithm": "sha512"})
    for _ in range(2):
        assert composed(client, location, (digest, 2, 4)).status_code == 202
    assert client.put(location, params={"digest": sha512(b"23452346")}).status_code == 400
    location = begin(client, repo, **{"digest-algorithm": "sha512"})
    assert composed(client, location, (digest, 2, 4), (digest, 0, 1)).status_code == 202
    assert client.put(location, params={"digest": sha512(b"23450")}).status_code == 201
    assert client.get(f"/v2/{repo}/blobs/{sha512(b'23450')}").content == b"23450"


def test_the_digest_decides(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, b"0123456789")
    location = begin(client, repo)
    assert composed(client, location, (digest, 0, 10)).status_code == 202
    answer = client.put(location, params={"digest": sha256(b"something else")})
    assert (answer.status_code, error_code(answer)) == (400, "DIGEST_INVALID")
    assert client.head(f"/v2/{repo}/blobs/{sha256(b'something else')}").status_code == 404


BAD = [
    b"", b"[]", b"{}", b'{"ranges":[]}', b'{"ranges":{}}', b'{"ranges":[1]}', b'{"ranges":[{}]}', b"[" * 100_000,
    json.dumps({"ranges": [{"from": "sha256:" + "0" * 64, "offset": 0, "length": 1}], "more": 1}).encode(),
    *(
        json.dumps({"ranges": [{"from": "sha256:" + "0" * 64, "offset": 0, "length": 1, **change}]}).encode()
        for change in (
            {"offset": -1}, {"length": 0}, {"length": -5}, {"offset": 2**62}, {"length": 2**70}, {"offset": 1.5},
            {"offset": True}, {"length": "1"}, {"offset": None}, {"from": "sha256:00"}, {"from": "../../etc"},
            {"from": 7}, {"repository": "../x"}, {"repository": None}, {"mode": "fast"},
            {"length": compose.MAX_LENGTH + 1},
        )
    ),
    json.dumps({"ranges": [{"from": f"sha256:{n:064x}", "offset": 0, "length": 1} for n in range(257)]}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_a_document_that_is_none_changes_nothing(client: httpx.Client, repo: str, body: bytes) -> None:
    location = begin(client, repo)
    client.patch(location, content=b"safe")
    answer = client.patch(location, content=body, headers=RANGES)
    assert (answer.status_code, error_code(answer)) == (400, "BLOB_UPLOAD_INVALID")
    finish(client, location, repo, b"safe")


def test_what_is_too_much_is_refused(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, b"0123456789")
    location = begin(client, repo)
    many = document(*[(digest, 0, 1)] * (compose.MAX_RANGES + 1))
    assert client.patch(location, content=many, headers=RANGES).status_code == 400
    assert client.patch(location, content=b" " * (compose.MAX_BODY + 1), headers=RANGES).status_code == 413
    for offset, length in ((0, 11), (10, 1), (9, 2), (2**61, 2**31)):
        answer = composed(client, location, (digest, 0, 10), (digest, offset, length))
        assert (answer.status_code, error_code(answer)) == (400, "SIZE_INVALID"), (offset, length)
    finish(client, location, repo, b"")


def test_only_blobs_that_the_caller_may_pull(registry_server: StartRegistry, tmp_path: Path) -> None:
    """Neither their bytes nor whether they exist is told to others, nor to one who may only push (CVE-2024-39897)."""
    rules = secured.RULES + '[[access]]\nprincipals = ["remover"]\nrepositories = ["carol/**"]\nrights = ["push"]\n'
    server = registry_server(tmp_path / "data", "--config", str(secured.configure(tmp_path, secured.AUTH + rules)))
    alice, bob, carol, remover = (secured.client(server.url, name) for name in ("alice", "bob", "carol", "remover"))
    secret = push_blob(alice, "carol/model", b"nobody else's")
    location = begin(bob, "team/model")
    refused = composed(bob, location, (secret, 0, 4), repository="carol/model")
    absent = composed(bob, location, ("sha256:" + "0" * 64, 0, 4), repository="carol/model")
    assert refused.status_code == absent.status_code == 404
    assert refused.text.replace(secret, "X") == absent.text.replace("sha256:" + "0" * 64, "X")
    assert composed(bob, location, (secret, 0, 4)).status_code == 404  # not in his own repository either
    assert composed(bob, location, (secret, 0, 10**6), repository="carol/model").status_code == 404
    assert composed(remover, begin(remover, "carol/model"), (secret, 0, 4)).status_code == 404
    assert composed(bob, begin(carol, "carol/x"), (secret, 0, 4), repository="team/model").status_code in (403, 404)
    for caller, place in ((carol, begin(carol, "carol/other")), (alice, begin(alice, "team/other"))):
        assert composed(caller, place, (secret, 0, 6), repository="carol/model").status_code == 202
    assert composed(alice, location, (secret, 0, 4), repository="carol/model").status_code == 404  # bob's upload
    shared = push_blob(alice, "public/model", b"for everybody")
    assert composed(bob, location, (shared, 0, 3), repository="public/model").status_code == 202
    finish(bob, location, "team/model", b"for")


def test_killed_in_the_middle(backend: Backend, registry_server: StartRegistry) -> None:
    """What the status says was taken stays; another process takes the rest."""
    server = registry_server(backend.storage, env=backend.env)
    block = os.urandom(10 * MIB)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        digest = push_blob(client, "kill/ed", block)
        location = begin(client, "kill/ed")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(composed, client, location, *[(digest, 0, len(block))] * 15)
            deadline = time.monotonic() + 120
            with httpx.Client(base_url=server.url, timeout=60) as watching:
                while stands(watching, location) <= 1 and not answer.done():
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            server.kill()
            assert isinstance(answer.exception(), httpx.TransportError) or answer.result().status_code == 202
    data = block * 15
    with httpx.Client(base_url=registry_server(backend.storage, env=backend.env).url, timeout=120) as client:
        done = stands(client, location)
        assert 64 * MIB <= done <= len(data)
        while done < len(data):
            at = done % len(block)
            answer = composed(client, location, (digest, at, len(block) - at))
            assert answer.status_code == 202, answer.text
            done = stands(client, location)
        finish(client, location, "kill/ed", data)
    assert list(Checker(backend.open()).run()) == []


def test_a_client_that_goes_finds_what_was_taken(server: RunningRegistry, repo: str) -> None:
    block = os.urandom(MIB)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        digest = push_blob(client, repo, block)
        location = begin(client, repo)
        with pytest.raises(httpx.ReadTimeout):
            client.patch(
                location, content=document(*[(digest, 0, MIB)] * 400), headers=RANGES,
                timeout=httpx.Timeout(60, read=0.05),
            )  # fmt: skip
        deadline, done = time.monotonic() + 120, -1
        while (now := stands(client, location)) <= 1 or now != done:
            assert time.monotonic() < deadline
            done = now
            time.sleep(0.3)
        rest = -done % MIB
        if rest:
            assert composed(client, location, (digest, MIB - rest, rest)).status_code == 202
        finish(client, location, repo, block * ((done + rest) // MIB))


def test_a_source_is_saved_from_the_garbage_collector(backend: Backend) -> None:
    store = backend.open()
    blobs, client = Blobs(store), TestClient(create_app(store))
    digest = Digest.parse(push_blob(client, "r", b"condemned already"))
    for key in (keys.record(digest), keys.blob("r", digest)):
        found = store.get(key)
        value = {**json.loads(found.data), "condemned": Condemned.at(1.0).to_json()}
        store.put(key, json.dumps(value).encode(), if_match=found.etag)
    assert blobs.record(digest).condemned is not None
    location = begin(client, "r")
    assert composed(client, location, (str(digest), 0, 9)).status_code == 202
    assert blobs.record(digest).condemned is None
    store.delete(blobs.record(digest).data)  # collected all the same, between two requests
    answer = composed(client, location, (str(digest), 0, 9))
    assert (answer.status_code, error_code(answer)) == (404, "BLOB_UNKNOWN")
    assert stands(client, location) == 9
    finish(client, location, "r", b"condemned")


@pytest.mark.s3
@pytest.mark.parametrize("refused", [False, True])
def test_s3_copies_whole_parts_by_itself(request: pytest.FixtureRequest, refused: bool) -> None:
    """Where parts are whole their bytes are not sent again; where the service will not, they are."""
    s3 = request.getfixturevalue("s3")
    store: Any = Backend("s3", s3.storage(), s3.env).open()
    config = replace(Config(), server=replace(Config().server, redirect=False))
    client, seen = TestClient(create_app(store, config)), {"UploadPartCopy": 0, "UploadPart": 0}

    def copying(**_: Any) -> None:
        seen["UploadPartCopy"] += 1
        if refused:
            raise EndpointConnectionError(endpoint_url="made up by a test")

    def sending(**_: Any) -> None:
        seen["UploadPart"] += 1

    old = os.urandom(3 * PART)
    digest = push_blob(client, "r", old)
    events = store._client.meta.events
    events.register("before-call.s3.UploadPartCopy", copying)
    events.register("before-call.s3.UploadPart", sending)
    location = begin(client, "r")
    client.patch(location, content=b"new")
    assert composed(client, location, (digest, 1, 3 * PART - 1)).status_code == 202
    finish(client, location, "r", b"new" + old[1:])
    assert seen == {"UploadPartCopy": 2, "UploadPart": 4 if refused else 2}


def values(depth: int = 3) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=depth),
        max_leaves=10,
    )


ITEM = st.fixed_dictionaries(
    {
        "from": st.sampled_from(["sha256:" + "a" * 64, "sha256:", "x"]) | values(),
        "offset": st.integers(-(2**70), 2**70) | values(),
        "length": st.integers(-(2**70), 2**70) | values(),
    },
    optional={"repository": st.sampled_from(["a/b", "A", ""]) | values()},
)


@given(st.binary(max_size=200) | values().map(json.dumps) | st.lists(ITEM).map(lambda x: json.dumps({"ranges": x})))
@settings(max_examples=300, deadline=None)
def test_any_document_is_ranges_or_malformed(raw: bytes | str) -> None:
    try:
        found = compose.parse(raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw, "a/b")
    except Malformed:
        return
    assert 0 < len(found) <= compose.MAX_RANGES
    assert 0 < sum(item.length for item in found) <= compose.MAX_LENGTH
    assert all(item.offset >= 0 and item.length > 0 for item in found)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ranges_make_what_they_say(client: httpx.Client, repo: str, seed: int, count: int) -> None:
    chance = random.Random(seed)
    old = random.Random(1).randbytes(3000)
    digest = push_blob(client, repo, old)
    location, data = begin(client, repo), b""
    for _ in range(3):
        ranges = []
        for _ in range(count):
            offset = chance.randrange(len(old))
            length = chance.randint(1, len(old) - offset)
            ranges.append((digest, offset, length))
            data += old[offset : offset + length]
        assert composed(client, location, *ranges).status_code == 202
        extra = chance.randbytes(chance.randrange(1, 50))
        assert client.patch(location, content=extra).status_code == 202
        data += extra
    finish(client, location, repo, data)
