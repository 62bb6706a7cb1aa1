"""Blobs whose tensor index is known: what local files hold is copied, what comes wrong is asked for again, and what an
index or a local file claims is never believed over the digest of the whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.errors import DigestMismatch
from artifact.tensorindex import FileIndex
from artifact.tensorindex.indexed import Place
from tests.artifact.chunked import (
    BLOB,
    DAMAGED,
    DATA,
    GAP,
    HEADER,
    INDEX,
    LARGE,
    OF_FIVE,
    PIECE,
    TENSORS,
    in_file,
    moved,
    pull,
    send,
)
from tests.artifact.exchanges import Exchange, Serve, asked, nothing_named

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_the_chunks_are_not_asked_for_one_by_one(serve: Serve, tmp_path: Path, proving: str) -> None:
    server = serve(send)
    pull(server.host, tmp_path)
    assert moved(server) <= len(DATA) and len(server.seen) < 2.5 * len(DATA) / PIECE


def test_only_what_is_missing_is_asked_for(serve: Serve, tmp_path: Path, proving: str) -> None:
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset >= HEADER)
    server = serve(send)
    pull(server.host, tmp_path / "store", local)
    assert [asked(item) for item in server.seen] == [(0, HEADER)]


def test_what_is_all_there_is_not_asked_for_at_all(serve: Serve, tmp_path: Path) -> None:
    server = serve(send)
    pull(server.host, tmp_path / "store", in_file(tmp_path / "old", lambda chunk: True))
    assert not server.seen


def test_near_parts_are_one_request(serve: Serve, tmp_path: Path) -> None:
    """The small tensor between two that are missing is here, and not worth a request more."""
    start, end = TENSORS[6].offset, TENSORS[9].offset
    local = in_file(
        tmp_path / "old",
        lambda chunk: not start <= chunk.offset < end or chunk.offset == TENSORS[7].offset,
    )
    server = serve(send)
    pull(server.host, tmp_path / "store", local)
    ranges = sorted(map(asked, server.seen))
    assert [start, *(last for _, last in ranges[:-1])] == [first for first, _ in ranges], "no gap between them"
    assert end - GAP <= ranges[-1][1] <= end
    assert len(ranges) <= 1 + (end - start) // (PIECE - LARGE)


def test_a_wrong_chunk_is_asked_for_again(
    serve: Serve, tmp_path: Path, proving: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was damaged once on its way costs that chunk, not the blob."""
    spoiled: list[int] = []

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        if not spoiled and start <= OF_FIVE.offset + 7 < end:
            spoiled.append(start)
            send(exchange, DAMAGED)
        else:
            send(exchange)

    server = serve(script)
    pull(server.host, tmp_path)
    assert spoiled and moved(server) <= len(DATA) + PIECE
    assert ("1 parts of" in capsys.readouterr().err) == (proving == "whole")


def test_a_chunk_that_stays_wrong_is_named(serve: Serve, tmp_path: Path, proving: str) -> None:
    with pytest.raises(DigestMismatch) as error:
        pull(serve(lambda exchange: send(exchange, DAMAGED)).host, tmp_path)
    assert f"chunk {OF_FIVE.offset}-{OF_FIVE.end - 1} (tensor blk.5) of m.gguf" in str(error.value)
    assert nothing_named(tmp_path) and not any((tmp_path / "ingest").iterdir())


def test_bytes_that_no_chunk_covers_are_zero(serve: Serve, tmp_path: Path, proving: str) -> None:
    """A server that sends something else between the tensors is not believed, and what was there is not kept."""
    hole = TENSORS[2].offset + TENSORS[2].length
    first: list[int] = []

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        damaged = start <= hole < end and not first
        if damaged:
            first.append(start)
        send(exchange, DATA[:hole] + b"!" + DATA[hole + 1 :] if damaged else DATA)

    server = serve(script)
    pull(server.host, tmp_path)
    assert first and moved(server) <= len(DATA) + PIECE


def test_damaged_local_bytes_are_found_and_fetched(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset >= HEADER, lambda chunk: chunk == OF_FIVE)
    server = serve(send)
    pull(server.host, tmp_path / "store", local)
    assert sorted(map(asked, server.seen)) == [(0, HEADER), (OF_FIVE.offset, OF_FIVE.end)]
    assert "1 parts of" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["gone", "short", "folder"])
def test_a_local_file_that_is_not_there_any_more(
    serve: Serve, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old"
    local = in_file(path, lambda chunk: chunk.offset >= HEADER)
    half = local[INDEX.chunks[20].digest].offset
    if how == "short":
        os.truncate(path, half)
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
    server = serve(send)
    pull(server.host, tmp_path / "store", local)
    assert moved(server) <= len(DATA)
    assert how != "short" or moved(server) < len(DATA) * 0.7
    assert not capsys.readouterr().err, "nothing was taken for what it is not"


def test_other_file_systems_are_copied_from_by_hand(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    server = serve(send)
    pull(server.host, tmp_path / "store", in_file(tmp_path / "old", lambda chunk: chunk.offset >= HEADER))
    assert [asked(item) for item in server.seen] == [(0, HEADER)]


def lying(*wrong: int) -> FileIndex:
    """An index whose chunks at these offsets have another digest than the file's."""
    chunks = [chunk._replace(digest=os.urandom(32)) if chunk.offset in wrong else chunk for chunk in INDEX.chunks]
    return FileIndex("m.gguf", BLOB.digest, len(DATA), TENSORS, chunks)


def test_an_index_that_is_wrong_about_what_is_fetched(
    serve: Serve, tmp_path: Path, proving: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(send)
    pull(server.host, tmp_path, index=lying(OF_FIVE.offset))
    warned = capsys.readouterr().err
    assert ("the tensor index is wrong about" in warned and "tensor blk.5" in warned) == (proving == "each")
    assert moved(server) < len(DATA) + 4 * PIECE


def test_an_index_that_is_wrong_about_what_is_here(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names a chunk that is here, and that the file does not have: all is fetched, and the index not asked."""
    other = os.urandom(OF_FIVE.length)
    digest = bytes.fromhex(Digest.of(other).hex)
    (tmp_path / "old").write_bytes(other)
    local = {digest: Place(tmp_path / "old", 0)}
    chunks = [chunk._replace(digest=digest) if chunk == OF_FIVE else chunk for chunk in INDEX.chunks]
    server = serve(send)
    pull(server.host, tmp_path / "store", local, FileIndex("m.gguf", BLOB.digest, len(DATA), TENSORS, chunks))
    assert "all of it is fetched again" in capsys.readouterr().err
    assert moved(server) < 2.1 * len(DATA)


def test_an_index_that_is_wrong_about_everything(serve: Serve, tmp_path: Path, proving: str) -> None:
    server = serve(send)
    pull(server.host, tmp_path, index=lying(*(chunk.offset for chunk in INDEX.chunks)))
    assert moved(server) < len(DATA) + 5 * PIECE
