"""Blobs whose tensor index is known: what local files hold is copied, what comes wrong is asked for again, and what an
index or a local file claims is never believed over the digest of the whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import artifact.layout.blobs
import artifact.layout.pieces
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Unreachable
from artifact.layout import LayoutRepository
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.remote import RemoteRepository
from artifact.tensorindex import Chunk, Chunker, FileIndex
from artifact.tensorindex.indexed import IndexedSource, Place
from artifact.transfer import push_blobs
from artifact.weights.tensor import Tensor
from tests.artifact.exchanges import QUIET, Exchange, Serve, asked, nothing_named

PIECE, NEAR, LARGE, SMALL = 100_000, 10_000, 40_000, 8_000
"""What a request, what lies between two, a chunk and a joined run have at most."""

HEADER, SIZE, COUNT = 12_345, 150_000, 12
GAP = 20
"""Zeros behind each tensor, as alignment leaves them."""


def content() -> tuple[bytes, list[Tensor]]:
    out, tensors = bytearray(os.urandom(HEADER)), []
    for number in range(COUNT):
        length = 500 if number % 4 == 3 else SIZE
        tensors.append(Tensor(f"blk.{number}", "U8", (length,), len(out), length))
        out += os.urandom(length) + bytes(GAP)
    return bytes(out), tensors


DATA, TENSORS = content()
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)


def chunks_of(data: bytes) -> tuple[Chunk, ...]:
    chunker = Chunker(TENSORS, len(data), chunk_size=LARGE, join_size=SMALL)
    chunker.update(data)
    return chunker.finish()


INDEX = FileIndex("m.gguf", BLOB.digest, len(DATA), TENSORS, chunks_of(DATA))
OF_FIVE = next(chunk for chunk in INDEX.chunks if chunk.offset == TENSORS[5].offset + LARGE)
"""The second chunk of the tensor blk.5."""
DAMAGED = DATA[: OF_FIVE.offset + 7] + bytes([DATA[OF_FIVE.offset + 7] ^ 1]) + DATA[OF_FIVE.offset + 8 :]
"""The file with one bit of that chunk flipped."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.layout.pieces, "PIECE", PIECE)
    monkeypatch.setattr(artifact.layout.pieces, "NEAR", NEAR)
    monkeypatch.setattr(artifact.layout.blobs, "IN_PIECES", PIECE)


@pytest.fixture(params=["each", "whole"])
def proving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chunks are checked each when it arrives, or all only if the digest of the whole is wrong."""
    monkeypatch.setattr(artifact.layout.pieces, "_PROVE_BELOW", float("inf") if request.param == "each" else 0)
    return request.param


def send(exchange: Exchange, data: bytes = DATA) -> None:
    start, end = asked(exchange)
    exchange.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")


def pull(
    host: str, folder: Path, local: Mapping[bytes, Place] | None = None, index: FileIndex = INDEX
) -> LayoutRepository:
    target = LayoutRepository(folder)
    source = IndexedSource(RemoteRepository(host, "x").blob_source(BLOB), index, local or {})
    push_blobs(target, {BLOB: source}, QUIET, 1)
    assert target.blob_path(BLOB.digest).read_bytes() == DATA
    assert not any((folder / "ingest").iterdir())
    return target


def in_file(path: Path, wanted: Callable[[Chunk], bool], damaged: Callable[[Chunk], bool] = lambda _: False):
    """A local file, of other content all around, that has some of the chunks, one behind the other."""
    out, places = bytearray(b"other content" * 7), {}
    for chunk in filter(wanted, INDEX.chunks):
        places[chunk.digest] = Place(path, len(out))
        data = bytearray(DATA[chunk.offset : chunk.end])
        if damaged(chunk):
            data[len(data) // 2] ^= 1
        out += data
    path.write_bytes(out)
    return places


def moved(server) -> int:
    return sum(end - start for start, end in map(asked, server.seen))


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


@pytest.mark.parametrize("when", [0, 5])
def test_a_registry_that_sends_all_for_a_range(
    serve: Serve, tmp_path: Path, when: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning, or after it had sent ranges: what is here does not help, and the blob still comes."""
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset % 3 != 0)
    server = serve(lambda e: send(e) if len(server.seen) <= when and "range" in e.headers else e.answer(200, DATA))
    pull(server.host, tmp_path / "store", local)
    assert "does not do ranges" in capsys.readouterr().err


def test_a_server_that_breaks_off_everywhere(serve: Serve, tmp_path: Path, no_waiting: None, proving: str) -> None:
    """In the middle of chunks: what had come of them is not asked for again, and still checked."""
    tried: Counter[int] = Counter()

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        tried[end] += 1
        if tried[end] > 2 or end - start < 10:
            return send(exchange)
        exchange.handler.send_response(206)
        exchange.handler.send_header("Content-Length", str(end - start))
        exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        exchange.handler.end_headers()
        exchange.handler.wfile.write(DATA[start : start + (end - start) // 3])
        exchange.handler.wfile.flush()
        exchange.hang_up()

    server = serve(script)
    pull(server.host, tmp_path)
    starts = sorted(asked(item) for item in server.seen)
    assert len(set(starts)) == len(starts), "no range twice"


def test_a_server_that_resets_connections(serve: Serve, tmp_path: Path, no_waiting: None) -> None:
    import socket
    import struct

    tried: Counter[tuple[int, int]] = Counter()

    def script(exchange: Exchange) -> None:
        tried[asked(exchange)] += 1
        if tried[asked(exchange)] < 3:
            connection = exchange.handler.connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            exchange.hang_up()
        else:
            send(exchange)

    pull(serve(script).host, tmp_path)


def test_a_redirect_that_expires_between_chunks(serve: Serve, tmp_path: Path) -> None:
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset // LARGE % 3 == 0)
    issued = 0

    def store(exchange: Exchange) -> None:
        if exchange.path.endswith(f"={issued}") and len(storage.seen) % 4:
            send(exchange)
        else:
            exchange.answer(403, b"<Error><Code>AccessDenied</Code></Error>")

    def registry(exchange: Exchange) -> None:
        nonlocal issued
        issued += 1
        exchange.answer(307, Location=f"http://{storage.host}/data?signature={issued}")

    storage = serve(store)
    pull(serve(registry).host, tmp_path / "store", local)
    assert issued > 1


def test_a_server_that_trickles_is_borne_with(serve: Serve, tmp_path: Path, proving: str) -> None:
    """Bytes that come in drops, across the borders of chunks."""

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        exchange.handler.send_response(206)
        exchange.handler.send_header("Content-Length", str(end - start))
        exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        exchange.handler.end_headers()
        for at in range(start, end, 7_777):
            exchange.handler.wfile.write(DATA[at : min(at + 7_777, end)])
            exchange.handler.wfile.flush()

    pull(serve(script).host, tmp_path)


PULLING = """
import pickle, sys
import artifact.layout.pieces
from pathlib import Path
from artifact.layout import LayoutRepository
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.tensorindex.indexed import IndexedSource
from artifact.transfer import push_blobs
host, folder, piece = sys.argv[1:]
artifact.layout.pieces.PIECE = int(piece)
blob, index, local = pickle.load(sys.stdin.buffer)
source = IndexedSource(RemoteRepository(host, "x").blob_source(blob), index, local)
push_blobs(LayoutRepository(Path(folder)), {blob: source}, Quiet(), 1)
"""


class Counting(ResumableSha256):
    """Counts what is hashed."""

    total = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        Counting.total += len(data)
        super().update(data)


def test_killed_in_the_middle_of_a_delta_it_goes_on(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported():
        pytest.skip("libcrypto does not export SHA256_Init here")
    import pickle

    half = TENSORS[7].offset
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset // LARGE % 2 == 0)
    held = threading.Event()

    def until_half(exchange: Exchange) -> None:
        if asked(exchange)[1] > half:
            held.wait(60)
            exchange.hang_up()
        else:
            send(exchange)

    server = serve(until_half)
    argv = [sys.executable, "-c", PULLING, server.host, str(tmp_path / "store"), str(PIECE)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert child.stdin is not None
    pickle.dump((BLOB, INDEX, local), child.stdin)
    child.stdin.close()
    deadline = time.monotonic() + 120
    while (hashed := recorded(tmp_path / "store").hashed) < half - 2 * PIECE:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held.set()
    hashed = recorded(tmp_path / "store").hashed
    assert nothing_named(tmp_path / "store") if (tmp_path / "store" / "blobs").exists() else True
    server.seen.clear()
    server.script = send
    Counting.total = 0
    monkeypatch.setattr(artifact.layout.pieces, "ResumableSha256", Counting)
    pull(server.host, tmp_path / "store", local)
    assert min(asked(item)[0] for item in server.seen) >= hashed, "what was hashed is not fetched again"
    assert Counting.total == len(DATA) - hashed, "nor hashed"


def recorded(folder: Path) -> Record:
    """What the transfer under way in `folder` has written down."""
    for path in (folder / "ingest").glob("*"):
        with path.open("rb") as stream:
            return Record.read(stream.fileno(), len(DATA), PIECE)
    return Record(PIECE, 0, None, frozenset())


def test_a_transfer_begun_without_the_index_goes_on_with_it_and_back(
    serve: Serve, tmp_path: Path, no_waiting: None
) -> None:
    server = serve(lambda e: send(e) if asked(e)[0] < 5 * PIECE else e.hang_up())
    target, plain = LayoutRepository(tmp_path), RemoteRepository(server.host, "x").blob_source(BLOB)
    with pytest.raises(Unreachable):
        push_blobs(target, {BLOB: plain}, QUIET, 1)
    server.seen.clear()
    server.script = lambda e: send(e) if asked(e)[0] < 9 * PIECE else e.hang_up()
    with pytest.raises(Unreachable):
        push_blobs(target, {BLOB: IndexedSource(plain, INDEX, {})}, QUIET, 1)
    assert min(asked(item)[0] for item in server.seen) > 5 * PIECE - LARGE
    server.seen.clear()
    server.script = send
    push_blobs(target, {BLOB: plain}, QUIET, 1)
    assert target.blob_path(BLOB.digest).read_bytes() == DATA
    assert min(asked(item)[0] for item in server.seen) >= 7 * PIECE
