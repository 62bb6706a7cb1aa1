"""Storing and sending what has no digest yet: read once, over broken connections, to registries that take no pieces."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.errors import Malformed, Unreachable
from artifact.layout import LayoutRepository
from artifact.remote import RemoteRepository
from artifact.source import Reader
from tests.artifact.exchanges import BLOB, DATA, QUIET, Exchange, Serve
from tests.artifact.test_remote_upload import Uploads, small_chunks

pytestmark = pytest.mark.usefixtures("no_waiting")


class Once:
    """A source that counts what is read of it."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.read = data, 0

    @contextmanager
    def __call__(self, offset: int) -> Iterator[Reader]:
        stream, counter = io.BytesIO(self.data), self
        stream.seek(offset)

        class Counting:
            def readinto(self, buffer: memoryview, /) -> int:
                count = stream.readinto(buffer)
                counter.read += count
                return count

        yield Counting()


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    small_chunks(monkeypatch)
    return Uploads()


def add(host: str, source: Once, size: int = len(DATA)) -> Digest:
    return RemoteRepository(host, "x").add_blob("weights", size, source, QUIET)


def test_the_digest_closes_the_upload(serve: Serve, uploads: Uploads) -> None:
    server, source = serve(uploads), Once()
    assert add(server.host, source) == BLOB.digest
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert [item.method for item in server.seen] == ["POST", *["PATCH"] * 5, "PUT"]
    assert source.read == len(DATA)


def test_broken_connections_cost_a_piece_each(serve: Serve, uploads: Uploads) -> None:
    uploads.break_after = [500_000, 1_500_000]
    source = Once()
    assert add(serve(uploads).host, source) == BLOB.digest
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert source.read <= len(DATA) + 2 * 500_000


def test_a_registry_that_takes_no_pieces_gets_one_request(serve: Serve, uploads: Uploads) -> None:
    uploads.refuse_second_patch = True
    assert add(serve(uploads).host, Once()) == BLOB.digest
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_a_registry_that_stays_away_is_an_error(serve: Serve, uploads: Uploads) -> None:
    uploads.break_after = [0] * 20
    with pytest.raises(Unreachable):
        add(serve(uploads).host, Once())
    assert uploads.blobs == {}


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x"], ids=["shorter", "longer"])
def test_a_source_that_changed_its_size_is_not_sent(serve: Serve, uploads: Uploads, data: bytes) -> None:
    server = serve(with_delete(uploads))
    with pytest.raises(Malformed, match="changed while it was packed"):
        add(server.host, Once(data))
    # The server may hear of the PATCH that broke off after it hears of the DELETE: they came over two connections.
    assert uploads.blobs == {} and "DELETE" in [item.method for item in server.seen]


def with_delete(uploads: Uploads):
    def answer(exchange: Exchange) -> None:
        if exchange.method == "DELETE":
            exchange.answer(204)
        else:
            uploads(exchange)

    return answer


def test_a_layout_stores_it_under_its_digest(tmp_path: Path) -> None:
    repository, source = LayoutRepository(tmp_path / "layout"), Once()
    assert repository.add_blob("weights", len(DATA), source, QUIET) == BLOB.digest
    assert repository.read_blob(BLOB) == DATA and source.read == len(DATA)
    assert repository.blob_path(BLOB.digest).stat().st_mode & 0o777 == 0o444
    assert repository.add_blob("again", len(DATA), Once(), QUIET) == BLOB.digest
    assert repository.add_blob("empty", 0, Once(b""), QUIET) == Digest.of(b"")
    assert not list((tmp_path / "layout" / "ingest").iterdir())


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""], ids=["shorter", "longer", "gone"])
def test_a_layout_keeps_nothing_of_what_changed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Malformed, match="weights: changed while it was packed"):
        LayoutRepository(tmp_path / "layout").add_blob("weights", len(DATA), Once(data), QUIET)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
