"""Pushing blobs to servers that break, refuse and forget."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from artifact.digest import Digest
from artifact.errors import (
    DigestMismatch,
    Unreachable,
)
from artifact.remote import RemoteRepository
from artifact.source import bytes_source
from tests.artifact.exchanges import BLOB, DATA, QUIET, Exchange, Serve

pytestmark = pytest.mark.usefixtures("no_waiting")


class Uploads:
    """A registry's upload endpoints, kept to the letter, with faults a test switches on."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.blobs: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.refuse_second_patch = False
        self.patches = 0

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "HEAD":
            exchange.answer(200 if exchange.path.rsplit("/", 1)[1] in self.blobs else 404)
        elif exchange.method == "POST":
            self.received = bytearray()
            exchange.answer(202, Location=f"http://{exchange.headers['host']}/v2/x/blobs/uploads/1?_state=a%3Db")
        elif exchange.method == "GET":
            exchange.answer(
                204, Location="/v2/x/blobs/uploads/1?_state=a%3Db", Range=f"0-{max(len(self.received) - 1, 0)}"
            )
        elif exchange.method == "PATCH":
            self.patch(exchange)
        elif exchange.method == "PUT":
            self.received += exchange.body()
            query = parse_qs(urlsplit(exchange.path).query)
            assert query["_state"] == ["a=b"]
            if str(Digest.of(self.received)) != query["digest"][0]:
                exchange.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"other bytes"}]}')
            else:
                self.blobs[query["digest"][0]] = bytes(self.received)
                exchange.answer(201)

    def patch(self, exchange: Exchange) -> None:
        self.patches += 1
        start = int(exchange.headers["content-range"].split("-")[0])
        assert start == len(self.received)
        if self.refuse_second_patch and start:
            exchange.body()
            exchange.answer(416)
        elif self.break_after and start >= self.break_after[0]:
            self.break_after.pop(0)
            exchange.handler.rfile.read(1000)
            exchange.hang_up()
        else:
            self.received += exchange.body()
            exchange.answer(202, Location="/v2/x/blobs/uploads/1?_state=a%3Db", Range=f"0-{len(self.received) - 1}")


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads go in pieces of half a million bytes."""
    for module in ("chunks", "upload"):
        monkeypatch.setattr(f"artifact.remote.{module}.CHUNK", 500_000)


def push_blob(host: str, data: bytes = DATA) -> bool:
    return RemoteRepository(host, "x").push_blob(BLOB, bytes_source(data), QUIET)


def test_a_small_blob_goes_in_one_put_and_only_once(serve: Serve) -> None:
    uploads = Uploads()
    server = serve(uploads)
    assert push_blob(server.host) is True
    assert push_blob(server.host) is False
    assert [item.method for item in server.seen] == ["HEAD", "POST", "PUT", "HEAD"]
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_a_large_blob_goes_in_bounded_patches_and_over_broken_connections(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    uploads = Uploads()
    uploads.break_after = [500_000, 1_500_000]
    assert push_blob(serve(uploads).host)
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert uploads.patches == 7


def test_a_push_after_a_dead_server_goes_on_where_it_was(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    uploads = Uploads()
    uploads.break_after = [1_000_000] * 20
    server = serve(uploads)
    with pytest.raises(Unreachable):
        push_blob(server.host)
    uploads.break_after = []
    before = uploads.patches
    assert push_blob(server.host)
    assert uploads.patches == before + 3, "only what was missing travels"
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_a_registry_that_takes_one_patch_gets_one_put(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    uploads = Uploads()
    uploads.refuse_second_patch = True
    assert push_blob(serve(uploads).host)
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_a_source_that_changed_is_not_pushed(serve: Serve) -> None:
    uploads = Uploads()
    server = serve(uploads)
    with pytest.raises(DigestMismatch):
        push_blob(server.host, DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert uploads.blobs == {}


def test_mounts_ask_for_both_scopes_and_only_within_a_registry(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(201))
    target = RemoteRepository(server.host, "x")
    assert target.mount_blob(BLOB.digest, RemoteRepository(server.host, "y/z"))
    assert server.seen[0].path == f"/v2/x/blobs/uploads/?mount={BLOB.digest}&from=y%2Fz"
    assert not target.mount_blob(BLOB.digest, RemoteRepository("localhost:1", "y"))
    assert not target.mount_blob(BLOB.digest, target)


def test_large_requests_only_where_they_get_through(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that keeps what arrives of a request gets large ones, until a proxy before it takes none."""
    small_chunks(monkeypatch)

    class Behind(Uploads):
        limit = 10**9
        least = 0

        def __call__(self, exchange: Exchange) -> None:
            if exchange.method == "POST":
                self.received = bytearray()
                exchange.answer(
                    202, Location="/v2/x/blobs/uploads/1?_state=a%3Db", Stowage_Compose="v1",
                    OCI_Chunk_Min_Length=str(self.least),
                )  # fmt: skip
            elif exchange.method == "PATCH" and int(exchange.headers["content-length"]) > self.limit:
                self.patches += 1
                exchange.body()
                exchange.answer(413)
            else:
                super().__call__(exchange)

    for limit, least, patches in ((10**9, 0, 1), (1_000_000, 0, 6), (1_000_000, 800_000, 5)):
        uploads = Behind()
        uploads.limit, uploads.least = limit, least
        assert push_blob(serve(uploads).host)
        assert uploads.blobs == {str(BLOB.digest): DATA}
        assert uploads.patches == patches
